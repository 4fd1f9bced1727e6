//! How often each address was turned away lately: one that guesses is left to wait.
//!
//! Only refusals count, so that ten thousand devices behind one address come in as fast as they like.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that are remembered; beyond that, those that were turned away longest ago are forgotten.
const MAX_ADDRESSES: usize = 16_384;

/// Refusals by address.
#[derive(Debug)]
pub(crate) struct Refusals {
    most: u32,
    within: Duration,
    seen: Mutex<BTreeMap<IpAddr, Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    refusals: u32,
    since: Instant,
}

impl Refusals {
    /// Lets an address be refused `most` times `within` a while.
    pub(crate) fn new(most: u32, within: Duration) -> Self {
        Self { most, within, seen: Mutex::default() }
    }

    /// How long this address has to wait, if it has to.
    pub(crate) fn must_wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let address = of_one_host(address);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.get(&address).filter(|seen| seen.refusals >= self.most)?;
        self.within.checked_sub(now.saturating_duration_since(seen.since)).filter(|wait| !wait.is_zero())
    }

    /// This address was turned away.
    pub(crate) fn count(&self, address: IpAddr, now: Instant) {
        let address = of_one_host(address);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |seen: &Seen| now.saturating_duration_since(seen.since) >= self.within;
        if seen.len() >= MAX_ADDRESSES && !seen.contains_key(&address) {
            seen.retain(|_, seen| !is_over(seen));
            if seen.len() >= MAX_ADDRESSES {
                let oldest = seen.iter().min_by_key(|(_, seen)| seen.since).map(|(address, _)| *address);
                oldest.and_then(|address| seen.remove(&address));
            }
        }
        let entry = seen.entry(address).or_insert(Seen { refusals: 0, since: now });
        if is_over(entry) {
            *entry = Seen { refusals: 0, since: now };
        }
        entry.refusals = entry.refusals.saturating_add(1);
    }
}

/// A host has 2^64 addresses of IPv6, and one of IPv4.
fn of_one_host(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => IpAddr::from((u128::from(six) >> 64 << 64).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_that_guesses_waits_and_others_do_not() {
        let refusals = Refusals::new(2, Duration::from_secs(60));
        let (guesser, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        refusals.count(guesser, at(0));
        assert_eq!(refusals.must_wait(guesser, at(0)), None);
        refusals.count(guesser, at(10));
        assert_eq!(refusals.must_wait(guesser, at(10)), Some(Duration::from_secs(50)));
        assert_eq!(refusals.must_wait(other, at(10)), None);
        assert_eq!(refusals.must_wait(guesser, at(60)), None);
        refusals.count(guesser, at(61));
        assert_eq!(refusals.must_wait(guesser, at(61)), None, "the count began anew");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let refusals = Refusals::new(1, Duration::from_secs(60));
        let now = Instant::now();
        for number in 0..MAX_ADDRESSES as u32 + 100 {
            refusals.count(IpAddr::from(Ipv4Addr::from(number)), now + Duration::from_millis(number.into()));
        }
        assert_eq!(refusals.seen.lock().unwrap().len(), MAX_ADDRESSES);
        let last = IpAddr::from(Ipv4Addr::from(MAX_ADDRESSES as u32 + 99));
        assert!(refusals.must_wait(last, now + Duration::from_secs(20)).is_some());
    }
}
