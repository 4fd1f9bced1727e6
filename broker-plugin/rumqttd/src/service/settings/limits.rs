//! `[limits]`: everything that is bounded; what is not set has its default.

use std::time::Duration;

use fleetkey_door::rate::RateLimit;
use fleetkey_door::settings::at_least;
use serde::Deserialize;

use super::SettingsError;
use crate::config::{Limits, QueueLimit};

/// Everything that is bounded; what is not set has its default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// See [`Limits::max_connections`].
    pub max_connections: Option<usize>,
    /// See [`Limits::max_connections_per_address`].
    pub max_connections_per_address: Option<usize>,
    /// See [`Limits::max_handshakes`].
    pub max_handshakes: Option<usize>,
    /// See [`Limits::handshake_timeout`].
    pub handshake_timeout_seconds: Option<u64>,
    /// See [`Limits::connect_timeout`].
    pub connect_timeout_seconds: Option<u64>,
    /// See [`Limits::max_packet_bytes`].
    pub max_packet_bytes: Option<usize>,
    /// See [`RateLimit::packets_per_second`].
    pub device_packets_per_second: Option<u32>,
    /// See [`RateLimit::burst_packets`].
    pub device_burst_packets: Option<u32>,
    /// See [`RateLimit::bytes_per_second`].
    pub device_bytes_per_second: Option<u32>,
    /// See [`RateLimit::burst_bytes`].
    pub device_burst_bytes: Option<u32>,
    /// See [`RateLimit::patience`].
    pub device_rate_patience_seconds: Option<u64>,
    /// See [`Limits::device_queue`].
    pub device_queue_messages: Option<usize>,
    /// See [`Limits::device_queue`].
    pub device_queue_bytes: Option<usize>,
    /// See [`Limits::coordinator_queue`].
    pub coordinator_queue_messages: Option<usize>,
    /// See [`Limits::coordinator_queue`].
    pub coordinator_queue_bytes: Option<usize>,
    /// See [`Limits::relay_queue`].
    pub relay_queue_messages: Option<usize>,
    /// See [`Limits::relay_queue`].
    pub relay_queue_bytes: Option<usize>,
    /// See [`Limits::max_in_flight`].
    pub max_in_flight: Option<u16>,
    /// See [`Limits::max_keep_alive`].
    pub max_keep_alive_seconds: Option<u64>,
    /// See [`Limits::write_timeout`].
    pub write_timeout_seconds: Option<u64>,
    /// See [`Limits::max_subscriptions_per_device`].
    pub max_subscriptions_per_device: Option<usize>,
    /// See [`Limits::max_subscriptions_per_relay`].
    pub max_subscriptions_per_relay: Option<usize>,
}

impl LimitSettings {
    pub(super) fn limits(&self) -> Result<Limits, SettingsError> {
        let default = Limits::default();
        let seconds = |value: Option<u64>, default| value.map_or(default, Duration::from_secs);
        let limits = Limits {
            max_connections: self.max_connections.unwrap_or(default.max_connections),
            max_connections_per_address: self.max_connections_per_address,
            max_handshakes: self.max_handshakes.unwrap_or(default.max_handshakes),
            handshake_timeout: seconds(self.handshake_timeout_seconds, default.handshake_timeout),
            connect_timeout: seconds(self.connect_timeout_seconds, default.connect_timeout),
            max_packet_bytes: self.max_packet_bytes.unwrap_or(default.max_packet_bytes),
            device_rate: self.device_rate(),
            device_queue: QueueLimit {
                messages: self.device_queue_messages.unwrap_or(default.device_queue.messages),
                bytes: self.device_queue_bytes.unwrap_or(default.device_queue.bytes),
            },
            coordinator_queue: QueueLimit {
                messages: self.coordinator_queue_messages.unwrap_or(default.coordinator_queue.messages),
                bytes: self.coordinator_queue_bytes.unwrap_or(default.coordinator_queue.bytes),
            },
            relay_queue: QueueLimit {
                messages: self.relay_queue_messages.unwrap_or(default.relay_queue.messages),
                bytes: self.relay_queue_bytes.unwrap_or(default.relay_queue.bytes),
            },
            max_in_flight: self.max_in_flight.unwrap_or(default.max_in_flight),
            max_keep_alive: seconds(self.max_keep_alive_seconds, default.max_keep_alive),
            write_timeout: seconds(self.write_timeout_seconds, default.write_timeout),
            max_subscriptions_per_device: self
                .max_subscriptions_per_device
                .unwrap_or(default.max_subscriptions_per_device),
            max_subscriptions_per_relay: self
                .max_subscriptions_per_relay
                .unwrap_or(default.max_subscriptions_per_relay),
        };
        at_least("max_connections", limits.max_connections as u64, 1)?;
        let per_address = limits.max_connections_per_address.unwrap_or(1);
        at_least("max_connections_per_address", per_address as u64, 1)?;
        at_least("max_handshakes", limits.max_handshakes as u64, 1)?;
        let rate = &limits.device_rate;
        at_least("device_packets_per_second", rate.packets_per_second.into(), 1)?;
        at_least("device_burst_packets", rate.burst_packets.into(), 1)?;
        at_least("device_bytes_per_second", rate.bytes_per_second.into(), 1_024)?;
        at_least("device_burst_bytes", rate.burst_bytes.into(), limits.max_packet_bytes as u64)?;
        at_least("handshake_timeout_seconds", limits.handshake_timeout.as_secs(), 1)?;
        at_least("connect_timeout_seconds", limits.connect_timeout.as_secs(), 1)?;
        at_least("max_packet_bytes", limits.max_packet_bytes as u64, 4_096)?;
        at_least("device_queue_messages", limits.device_queue.messages as u64, 1)?;
        at_least("device_queue_bytes", limits.device_queue.bytes as u64, limits.max_packet_bytes as u64)?;
        at_least("coordinator_queue_messages", limits.coordinator_queue.messages as u64, 1)?;
        at_least(
            "coordinator_queue_bytes",
            limits.coordinator_queue.bytes as u64,
            limits.max_packet_bytes as u64,
        )?;
        at_least("relay_queue_messages", limits.relay_queue.messages as u64, 1)?;
        at_least("relay_queue_bytes", limits.relay_queue.bytes as u64, limits.max_packet_bytes as u64)?;
        at_least("max_in_flight", limits.max_in_flight.into(), 1)?;
        at_least("max_keep_alive_seconds", limits.max_keep_alive.as_secs(), 1)?;
        at_least("write_timeout_seconds", limits.write_timeout.as_secs(), 1)?;
        at_least("max_subscriptions_per_device", limits.max_subscriptions_per_device as u64, 2)?;
        at_least("max_subscriptions_per_relay", limits.max_subscriptions_per_relay as u64, 2)?;
        Ok(limits)
    }

    fn device_rate(&self) -> RateLimit {
        let default = RateLimit::default();
        RateLimit {
            packets_per_second: self.device_packets_per_second.unwrap_or(default.packets_per_second),
            burst_packets: self.device_burst_packets.unwrap_or(default.burst_packets),
            bytes_per_second: self.device_bytes_per_second.unwrap_or(default.bytes_per_second),
            burst_bytes: self.device_burst_bytes.unwrap_or(default.burst_bytes),
            patience: self.device_rate_patience_seconds.map_or(default.patience, Duration::from_secs),
        }
    }
}
