//! The coordinator at the broker: what devices publish goes to the engine, what the engine decided goes out.
//!
//! Topics are read here and nowhere further in. Messages leave in the order in which they were decided, and only
//! while the subscription to every `up` topic is in force, so that no answer is missed.

use std::sync::Arc;
use std::time::Duration;

use fleetkey_mqtt::{BrokerUrl, Client, Event, Events, Options, PublishError};
use fleetkey_wire::limits::MAX_UP_FRAME_BYTES;
use fleetkey_wire::{Filter, FleetId, Topic};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::engine::{OutboxTicket, Outgoing, Stop, Up};
use crate::meter;

/// A coordinator hears from the whole fleet at once after a power cut.
const EVENT_MESSAGES: usize = 262_144;
const EVENT_BYTES: usize = 64 * 1024 * 1024;

/// The connection of a fleet's coordinator to its broker. All coordinators of a fleet have the same client id: the
/// newest pushes the others out.
pub fn mqtt_options(url: BrokerUrl, tls: Option<Arc<rustls::ClientConfig>>, fleet: FleetId) -> Options {
    let id = fleet.to_string();
    let mut options = Options::new(url, format!("coordinator-{}", &id[..8]));
    options.tls = tls;
    options.filters = vec![all_up(fleet)];
    options.keep_alive = Duration::from_secs(30);
    options.backoff.min = Duration::from_millis(250);
    options.backoff.max = Duration::from_secs(15);
    options.queue_messages = 1_024;
    options.event_messages = EVENT_MESSAGES;
    options.event_bytes = EVENT_BYTES;
    options
}

fn all_up(fleet: FleetId) -> String {
    Filter::AllUp { fleet }.to_string()
}

/// Takes what devices say to the engine, and keeps account of the connection.
pub(crate) async fn receive(
    mut events: Events,
    fleet: FleetId,
    ups: mpsc::Sender<Up>,
    is_connected: watch::Sender<bool>,
) {
    let filter = all_up(fleet);
    let mut last_reason = None;
    while let Some(event) = events.next().await {
        match event {
            Event::Connected => {}
            Event::Subscribed { filter: granted } if granted == filter => {
                info!("connected to the broker");
                last_reason = None;
                set(&is_connected, true);
            }
            Event::Subscribed { .. } => {}
            Event::SubscribeRefused { filter } => {
                warn!(filter, "the broker refuses the subscription: does it know the coordinator?");
            }
            Event::Message { topic, payload } => {
                let up = match read(&topic, &payload, fleet) {
                    Ok(up) => up,
                    Err(reason) => {
                        tracing::debug!(reason, "message refused");
                        meter::topic_refused(reason);
                        continue;
                    }
                };
                if ups.send(up).await.is_err() {
                    break;
                }
            }
            Event::MessagesDropped { count } => {
                warn!(count, "messages of devices dropped: more came than could be decided");
                meter::ups_dropped(count);
            }
            Event::Disconnected { reason, retry_in } => {
                let is_news = *is_connected.borrow() || last_reason.as_ref() != Some(&reason);
                if is_news {
                    warn!(reason, retry_ms = retry_in.as_millis() as u64, "no connection to the broker");
                }
                last_reason = Some(reason);
                set(&is_connected, false);
            }
        }
    }
    set(&is_connected, false);
}

fn set(is_connected: &watch::Sender<bool>, now: bool) {
    meter::connected(now);
    is_connected.send_replace(now);
}

/// Reads the topic. What is no device's word is refused by name; the core bounds the payload again.
fn read(topic: &str, payload: &[u8], fleet: FleetId) -> Result<Up, &'static str> {
    match Topic::parse(topic) {
        Ok(Topic::Up { fleet: of, device }) if of == fleet => {
            if payload.len() <= MAX_UP_FRAME_BYTES {
                Ok(Up { device, payload: payload.to_vec() })
            } else {
                Err("too_large")
            }
        }
        Ok(Topic::Up { .. }) => Err("other_fleet"),
        Ok(Topic::Cell { .. } | Topic::Down { .. }) => Err("not_up"),
        Err(_) => Err("not_a_topic"),
    }
}

/// Publishes what was decided, in order, and gives each ticket back once the message is with the client.
pub(crate) async fn send(
    client: Client,
    mut outgoing: mpsc::Receiver<Outgoing>,
    sent: mpsc::Sender<OutboxTicket>,
    mut is_connected: watch::Receiver<bool>,
    mut stop: watch::Receiver<Stop>,
) {
    loop {
        // Without a connection messages wait in the engine, where answers that nobody waits for are dropped.
        tokio::select! {
            connected = is_connected.wait_for(|connected| *connected) => {
                if connected.is_err() {
                    break;
                }
            }
            _ = stop.wait_for(|stop| *stop != Stop::Run) => break,
        }
        let Some(Outgoing { topic, payload, ticket }) = outgoing.recv().await else { break };
        match client.publish(&topic.to_string(), payload).await {
            Ok(()) => {}
            Err(PublishError::Closed) => break,
            Err(
                refused @ (PublishError::BadTopic { .. }
                | PublishError::TooLarge { .. }
                | PublishError::QueueFull),
            ) => {
                error!(%topic, %refused, "message cannot be sent");
            }
        }
        if let Some(ticket) = ticket
            && sent.send(ticket).await.is_err()
        {
            break;
        }
    }
    // What the engine still hands over on its way out.
    while let Some(Outgoing { topic, payload, ticket }) = outgoing.recv().await {
        if *is_connected.borrow()
            && client.publish(&topic.to_string(), payload).await.is_ok()
            && let Some(ticket) = ticket
        {
            let _ = sent.send(ticket).await;
        }
    }
    client.close().await;
}

#[cfg(test)]
mod tests {
    use fleetkey_wire::{CellId, DeviceId};

    use super::*;

    fn fleet(n: u8) -> FleetId {
        FleetId::from_bytes([n; 16])
    }

    #[test]
    fn what_is_no_devices_word_is_refused_by_name() {
        let device = DeviceId::from_bytes([2; 16]);
        let up = |of| Topic::Up { fleet: of, device }.to_string();
        let refused = |topic: &str, bytes| read(topic, &vec![0; bytes], fleet(1)).err();
        assert_eq!(refused(&up(fleet(1)), MAX_UP_FRAME_BYTES), None);
        assert_eq!(refused(&up(fleet(1)), MAX_UP_FRAME_BYTES + 1), Some("too_large"));
        assert_eq!(refused(&up(fleet(3)), 1), Some("other_fleet"));
        let cell = Topic::Cell { fleet: fleet(1), cell: CellId::from_bytes([4; 16]) };
        assert_eq!(refused(&cell.to_string(), 1), Some("not_up"));
        assert_eq!(refused(&Topic::Down { fleet: fleet(1), device }.to_string(), 1), Some("not_up"));
        assert_eq!(refused(&format!("{}/x", up(fleet(1))), 1), Some("not_a_topic"));
    }

    #[test]
    fn a_coordinator_subscribes_to_its_fleet_and_is_no_device() {
        let options = mqtt_options("mqtt://localhost".parse().unwrap(), None, fleet(1));
        assert_eq!(options.filters, [format!("fk/{}/dev/+/up", fleet(1))]);
        assert!(options.client_id.starts_with("coordinator-"));
        assert!(options.client_id.parse::<DeviceId>().is_err());
    }
}
