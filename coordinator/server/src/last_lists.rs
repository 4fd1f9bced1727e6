//! Which last lists of retired CAs are still published, and whether there is room for one more.
//!
//! What brokers read of `fleet.crl` is bounded, and a retired CA's key is gone: its list cannot be made shorter. It is left out
//! when the last certificate that the CA issued has ended, for then it can vouch for nothing. Leaves the lists of CAs that are
//! not retired, which have a part of the file to themselves, to [`crate::RevocationLists`].

use fleetkey_identity::{FleetRoots, MAX_CAS_AMONG_CRLS, MAX_CRL_BYTES};

use crate::cas::RetiredCa;

/// Most last lists; the other places are for CAs that are not retired.
const MAX_LISTS: usize = MAX_CAS_AMONG_CRLS - 16;

/// Most bytes of them all. Readers take twice what one list may have.
const MAX_BYTES: usize = MAX_CRL_BYTES + MAX_CRL_BYTES / 2;

/// Those whose last list is published: first those that a pinned root has certified, then others as far as there is room.
/// A reader that pins the root of such a one no more needs no list to refuse what it issued.
pub(crate) fn published<'a>(
    retired: impl IntoIterator<Item = &'a RetiredCa>,
    roots: &FleetRoots,
    now_unix_seconds: u64,
) -> Vec<&'a RetiredCa> {
    let counting = retired.into_iter().filter(|retired| retired.may_count(now_unix_seconds));
    let (needed, spare): (Vec<_>, Vec<_>) =
        counting.partition(|retired| roots.certifies(&retired.certificate));
    let mut published = needed;
    let mut bytes = total(&published);
    for one in spare {
        let more = one.to_pem().len();
        if published.len() < MAX_LISTS && bytes + more <= MAX_BYTES {
            published.push(one);
            bytes += more;
        }
    }
    published
}

/// Whether the list of one more CA can be published, and read back.
pub(crate) fn has_room<'a>(
    retired: impl IntoIterator<Item = &'a RetiredCa>,
    next: &RetiredCa,
    roots: &FleetRoots,
    now_unix_seconds: u64,
) -> bool {
    let needed: Vec<_> = retired
        .into_iter()
        .filter(|retired| retired.may_count(now_unix_seconds) && roots.certifies(&retired.certificate))
        .collect();
    let own = next.to_pem().len();
    needed.len() < MAX_LISTS && own <= MAX_CRL_BYTES && total(&needed) + own <= MAX_BYTES
}

fn total(retired: &[&RetiredCa]) -> usize {
    retired.iter().map(|retired| retired.to_pem().len()).sum()
}

#[cfg(test)]
mod tests {
    use fleetkey_identity::{FleetCa, Validity};
    use fleetkey_wire::FleetId;
    use rand_core::OsRng;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn root() -> (FleetCa, FleetRoots) {
        let root = FleetCa::create(FleetId::from_bytes([1; 16]), &mut OsRng, always()).unwrap();
        let roots = FleetRoots::new(&[root.certificate_der().to_vec()]).unwrap();
        (root, roots)
    }

    fn always() -> Validity {
        Validity::without_end(i64::try_from(NOW).unwrap())
    }

    fn retired(root: &FleetCa, certificates_until: Option<u64>) -> RetiredCa {
        let ca = root.create_intermediate(&mut OsRng, always()).unwrap();
        let last_list = ca.revocation_list(1, always(), &[]).unwrap();
        RetiredCa { certificate: ca.certificate_der().to_vec(), last_list, certificates_until }
    }

    #[test]
    fn a_last_list_is_published_until_the_last_certificate_has_ended() {
        let (root, roots) = root();
        let all = [retired(&root, Some(NOW)), retired(&root, Some(NOW - 1)), retired(&root, None)];
        let ids: Vec<_> = published(&all, &roots, NOW).iter().map(|retired| retired.id()).collect();
        assert_eq!(ids, [all[0].id(), all[2].id()]);
    }

    #[test]
    fn what_readers_do_not_take_is_not_published_and_has_no_room() {
        let (root, roots) = root();
        let (unpinned, _) = self::root();
        let next = retired(&root, None);
        let mut all: Vec<_> = (1..MAX_LISTS).map(|_| retired(&root, None)).collect();
        all.insert(0, retired(&unpinned, None));
        all.insert(0, retired(&unpinned, None));
        assert!(has_room(&all, &next, &roots, NOW));
        assert_eq!(published(&all, &roots, NOW).len(), MAX_LISTS);
        all.push(retired(&root, None));
        assert!(!has_room(&all, &next, &roots, NOW));
        let published = published(&all, &roots, NOW);
        assert!(
            published.len() == MAX_LISTS && published.iter().all(|one| roots.certifies(&one.certificate))
        );

        let too_long = RetiredCa { last_list: vec![0; MAX_CRL_BYTES], ..next.clone() };
        assert!(!has_room(&[], &too_long, &roots, NOW));
        let half = RetiredCa { last_list: vec![0; MAX_CRL_BYTES / 2], ..next };
        assert!(has_room([&half], &half, &roots, NOW));
        assert!(!has_room([&half, &half], &half, &roots, NOW));
    }
}
