//! The demo, as a test: real broker, real coordinator, real agents, over both fan-outs.

use fleetkey_sim::demo::{self, Options};
use fleetkey_sim::fleet::{BrokerChoice, FanOut};

/// Enough for cells without a revoked device, whatever the choice.
const DEVICES: usize = 200;

async fn holds_with(fan_out: FanOut) {
    let options =
        Options { devices: DEVICES, broker: BrokerChoice::Embedded(fan_out), with_revocation: None };
    options.check().expect("this machine can run it");
    let report = demo::run(&options).await.expect("everything starts");
    assert!(report.passed(), "{report}");

    let at = &report.revocation;
    assert_eq!(at.cells, 4, "{at:?}");
    assert!((1..=3).contains(&at.commit_frames), "{at:?}");
    assert_eq!(at.statement_frames + at.commit_frames, at.cells, "{at:?}");
    assert!((200..=300).contains(&at.statement_frame_max_bytes), "{at:?}");
    assert!((3_000..=7_168).contains(&at.commit_frame_max_bytes), "{at:?}");
    assert!(at.published <= at.cells + 2, "{at:?}");
    assert_eq!((at.signatures, at.statements), (1, 1), "{at:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_holds_with_the_map_of_cells() {
    holds_with(FanOut::ExactMap).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_holds_with_the_router() {
    holds_with(FanOut::Router).await;
}
