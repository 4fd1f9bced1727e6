//! What rmqtt keeps for a session: a queue while it is connected, and nothing that outlives its connection.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use fleetkey_wire::DeviceId;
use rmqtt::fitter::{DefaultFitter, Fitter, FitterManager};
use rmqtt::types::{CodecPublish, ConnectInfo, Disconnect, FitterType, Id, ListenerConfig};

use crate::config::Limits;

/// Makes what sessions are fitted with.
pub(crate) struct Fitters {
    device_queue_messages: usize,
    coordinator_queue_messages: usize,
    max_keep_alive_seconds: u16,
}

struct Fitted {
    usual: DefaultFitter,
    queue_messages: usize,
    max_keep_alive_seconds: u16,
}

impl Fitters {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            max_keep_alive_seconds: u16::try_from(limits.max_keep_alive.as_secs()).unwrap_or(u16::MAX),
            device_queue_messages: limits.device_queue_messages,
            coordinator_queue_messages: limits.coordinator_queue_messages,
        }
    }
}

impl FitterManager for Fitters {
    fn create(&self, connect: Arc<ConnectInfo>, id: Id, listener: ListenerConfig) -> FitterType {
        let queue_messages = if id.client_id.parse::<DeviceId>().is_ok() {
            self.device_queue_messages
        } else {
            self.coordinator_queue_messages
        };
        let max_keep_alive_seconds = self.max_keep_alive_seconds;
        let usual = DefaultFitter::new(connect, id, listener);
        Arc::new(Fitted { usual, queue_messages, max_keep_alive_seconds })
    }
}

impl Fitter for Fitted {
    /// Who promises nothing, or too little, is held to the longest that there is.
    fn keep_alive(&self, keep_alive: &mut u16) -> rmqtt::Result<u16> {
        if *keep_alive == 0 || *keep_alive > self.max_keep_alive_seconds {
            *keep_alive = self.max_keep_alive_seconds;
        }
        self.usual.keep_alive(keep_alive)
    }

    fn max_mqueue_len(&self) -> usize {
        self.queue_messages
    }

    fn mqueue_rate_limit(&self) -> (NonZeroU32, Duration) {
        self.usual.mqueue_rate_limit()
    }

    fn max_inflight(&self) -> NonZeroU16 {
        self.usual.max_inflight()
    }

    /// What is kept for somebody who is away would outlive the policy that let it in.
    fn session_expiry_interval(&self, _: Option<&Disconnect>) -> Duration {
        Duration::ZERO
    }

    fn message_expiry_interval(&self, publish: &CodecPublish) -> Duration {
        self.usual.message_expiry_interval(publish)
    }

    fn max_client_topic_aliases(&self) -> u16 {
        0
    }

    fn max_server_topic_aliases(&self) -> u16 {
        0
    }
}
