//! The metrics, by name. Where no recorder is installed they cost nothing and go nowhere.

use fleetkey_coordinator_core::{Event, UpRefused};
use fleetkey_wire::error::Named;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

use crate::stats::Kind;

const INPUTS: &str = "fleetkey_inputs_total";
const REFUSED: &str = "fleetkey_refused_total";
const EVENTS: &str = "fleetkey_events_total";
const REKEYS: &str = "fleetkey_rekeys_total";
const CATCH_UPS: &str = "fleetkey_catch_ups_total";
const MESSAGES: &str = "fleetkey_messages_sent_total";
const BYTES: &str = "fleetkey_message_bytes_sent_total";
const DROPPED: &str = "fleetkey_messages_dropped_total";
const UPS_DROPPED: &str = "fleetkey_messages_received_dropped_total";
const COMMIT_SECONDS: &str = "fleetkey_commit_seconds";
const BATCH: &str = "fleetkey_batch_inputs";
const STORE_FAILURES: &str = "fleetkey_store_failures_total";
const READY: &str = "fleetkey_ready";
const CONNECTED: &str = "fleetkey_broker_connected";
const QUEUE: &str = "fleetkey_queue_depth";
const CPU: &str = "fleetkey_decision_cpu_seconds";

/// Where transactions' seconds and batches' sizes are counted up to.
const BUCKETS: [(&str, &[f64]); 2] = [
    (COMMIT_SECONDS, &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0]),
    (BATCH, &[0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
];

/// A recorder for Prometheus that counts in buckets, so that several coordinators can be added up.
pub(crate) fn recorder() -> PrometheusRecorder {
    BUCKETS
        .into_iter()
        .fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
            builder
                .set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)
                .expect("there are bounds to count up to")
        })
        .build_recorder()
}

/// Says what each metric means.
pub(crate) fn describe() {
    describe_counter!(INPUTS, "Inputs handled, by kind: up, command, timeout");
    describe_counter!(REFUSED, "Messages and commands refused, by reason");
    describe_counter!(EVENTS, "Events, by kind");
    describe_counter!(REKEYS, "Statements signed, by the reason they give");
    describe_counter!(CATCH_UPS, "Devices brought up to date, by means");
    describe_counter!(MESSAGES, "MQTT messages decided, by kind");
    describe_counter!(BYTES, "Payload bytes of MQTT messages decided, by kind");
    describe_counter!(DROPPED, "MQTT messages not sent for want of a connection, and not needed later");
    describe_counter!(UPS_DROPPED, "Messages of devices dropped, as more came than could be decided");
    describe_histogram!(COMMIT_SECONDS, "Seconds that a transaction took");
    describe_histogram!(BATCH, "Inputs that shared a transaction");
    describe_counter!(STORE_FAILURES, "Transactions and loads that failed");
    describe_gauge!(READY, "1 while the coordinator is loaded");
    describe_gauge!(CONNECTED, "1 while there is a connection to the broker");
    describe_gauge!(QUEUE, "What waits: up and command to be decided, outbox to be sent");
    describe_gauge!(CPU, "Seconds that the deciding thread has spent on a CPU");
}

pub(crate) fn input(kind: &'static str) {
    counter!(INPUTS, "kind" => kind).increment(1);
}

pub(crate) fn up_refused(refused: &UpRefused) {
    counter!(REFUSED, "what" => "up", "reason" => refused.name()).increment(1);
}

pub(crate) fn topic_refused(reason: &'static str) {
    counter!(REFUSED, "what" => "topic", "reason" => reason).increment(1);
}

pub(crate) fn command_refused(reason: &'static str) {
    counter!(REFUSED, "what" => "command", "reason" => reason).increment(1);
}

pub(crate) fn request_refused(reason: &'static str) {
    counter!(REFUSED, "what" => "request", "reason" => reason).increment(1);
}

pub(crate) fn event(event: &Event) {
    let kind = match event {
        Event::Rekeyed { reason, .. } => {
            counter!(REKEYS, "reason" => reason.name()).increment(1);
            "rekeyed"
        }
        Event::Confirmed { .. } => "confirmed",
        Event::AllConfirmed { .. } => "all_confirmed",
        Event::Deadline { missing: 0, .. } => "deadline_kept",
        Event::Deadline { .. } => "deadline_missed",
        Event::Joined { fresh: false, .. } => "joined",
        Event::Joined { fresh: true, .. } => "joined_afresh",
        Event::Left { .. } => "left",
        Event::Resent { .. } => "resent",
        Event::CaughtUp { by, .. } => {
            counter!(CATCH_UPS, "by" => by.name()).increment(1);
            "caught_up"
        }
        Event::Quarantined { .. } => "quarantined",
        Event::Superseded { .. } => "superseded",
    };
    counter!(EVENTS, "kind" => kind).increment(1);
}

pub(crate) fn message(kind: Kind, bytes: usize) {
    counter!(MESSAGES, "kind" => kind.name()).increment(1);
    counter!(BYTES, "kind" => kind.name()).increment(bytes as u64);
}

pub(crate) fn ups_dropped(count: u64) {
    counter!(UPS_DROPPED).increment(count);
}

pub(crate) fn dropped(messages: u64) {
    counter!(DROPPED).increment(messages);
}

pub(crate) fn transaction(inputs: usize, seconds: f64) {
    histogram!(COMMIT_SECONDS).record(seconds);
    histogram!(BATCH).record(inputs as f64);
}

pub(crate) fn store_failure() {
    counter!(STORE_FAILURES).increment(1);
}

pub(crate) fn ready(is_ready: bool) {
    gauge!(READY).set(f64::from(u8::from(is_ready)));
}

pub(crate) fn connected(is_connected: bool) {
    gauge!(CONNECTED).set(f64::from(u8::from(is_connected)));
}

pub(crate) fn queue(of: &'static str, depth: usize) {
    gauge!(QUEUE, "of" => of).set(depth as f64);
}

pub(crate) fn cpu(seconds: f64) {
    gauge!(CPU).set(seconds);
}
