//! The link when the coordinator starts anew: what was said before is worth nothing, and the device finds out.

use fleetkey_wire::link::{LinkRefused, OpenedDown};
use fleetkey_wire::{DismissReason, DownBody};

use crate::link::{Coordinator, answer, connect, establish, hello, is_live, leave, refused};
use crate::support::*;

#[test]
fn a_device_heals_after_the_coordinator_restarts() {
    let mut rng = rng();
    let (mut device, mut coordinator) = (connect(&mut rng), Coordinator::start(&mut rng));
    establish(&mut device, &mut coordinator);
    let (before, _) = device.seal(&leave());

    let mut coordinator = Coordinator::start(&mut rng);
    assert_eq!(refused(coordinator.open(&before)), LinkRefused::StaleNonce);
    assert!(!coordinator.link.is_known(), "a stale frame proves no connection");
    let lost = coordinator.seal(&DownBody::HelloAgain);
    let again = coordinator.seal(&DownBody::HelloAgain);
    assert_ne!(lost, again);
    assert_eq!(device.open(&again), Err(LinkRefused::PeerRestarted.into()));

    device.restart(&mut rng);
    establish(&mut device, &mut coordinator);
    assert!(is_live(&mut device, &mut coordinator));
    assert_eq!(refused(coordinator.open(&before)), LinkRefused::StaleNonce);
}

#[test]
fn frames_of_a_coordinator_before_its_restart_are_refused() {
    let mut rng = rng();
    let (mut device, mut coordinator) = (connect(&mut rng), Coordinator::start(&mut rng));
    establish(&mut device, &mut coordinator);
    let recorded: Vec<_> = (0..3).map(|n| coordinator.seal(&answer(n))).collect();

    let mut coordinator = Coordinator::start(&mut rng);
    device.restart(&mut rng);
    establish(&mut device, &mut coordinator);
    for frame in recorded {
        assert_eq!(device.open(&frame), Err(LinkRefused::StaleNonce.into()));
        assert!(is_live(&mut device, &mut coordinator));
    }
}

#[test]
fn a_restart_the_device_has_not_noticed_is_told_by_any_later_frame() {
    let mut rng = rng();
    let (mut device, mut old) = (connect(&mut rng), Coordinator::start(&mut rng));
    establish(&mut device, &mut old);

    let mut new = Coordinator::start(&mut rng);
    // The new coordinator heard the device's hello; its answer is under a nonce the device does not know.
    let (again, _) = device.seal(&hello());
    assert_eq!(refused(new.open(&again)), LinkRefused::StaleNonce);
    let told = new.seal(&DownBody::HelloAgain);
    assert_eq!(device.open(&told), Err(LinkRefused::PeerRestarted.into()));
    // Refused, it changed nothing: frames of the old coordinator, on the way, still count.
    let late = old.seal(&answer(9));
    assert_eq!(device.open(&late), Ok(OpenedDown::Fresh(answer(9))));
}

#[test]
fn a_coordinator_that_never_heard_the_device_can_only_poke_it() {
    let mut rng = rng();
    let (mut device, mut coordinator) = (connect(&mut rng), Coordinator::start(&mut rng));
    let poke = coordinator.seal(&DownBody::HelloAgain);
    assert_eq!(device.open(&poke), Ok(OpenedDown::Poke));
    assert!(!device.is_answered());
    // It is authentic, and that is all: it may come again, and again proves nothing.
    assert_eq!(device.open(&poke), Ok(OpenedDown::Poke));

    for body in [
        answer(1),
        DownBody::RequestEvidence { group: GROUP },
        DownBody::Dismiss { group: GROUP, cell: CELL, reason: DismissReason::Evicted },
    ] {
        let frame = coordinator.seal(&body);
        assert_eq!(device.open(&frame), Err(LinkRefused::StaleNonce.into()));
        assert!(!device.is_answered());
    }

    establish(&mut device, &mut coordinator);
    assert_eq!(device.open(&poke), Ok(OpenedDown::Poke));
    assert!(is_live(&mut device, &mut coordinator));
}
