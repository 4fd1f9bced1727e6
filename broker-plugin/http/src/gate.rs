//! The questions that brokers ask, answered from the policy, and counted.
//!
//! Leaves to `dialect` how a broker puts a question.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fleetkey_policy::{Party, PolicyHandle, Qos, RELAY_CLIENT_ID_PREFIX};
use fleetkey_policy_follow::LastHeard;
use metrics::counter;

use crate::party::party_of;
use crate::refused::Refused;

/// What a client wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question<'a> {
    /// To connect.
    Connect,
    /// To publish to a topic. How long the payload is, no broker tells.
    Publish {
        /// The topic.
        topic: &'a str,
        /// At this QoS, where the broker tells.
        qos: Qos,
        /// For the broker to keep, where it tells.
        retain: bool,
    },
    /// To subscribe to a filter.
    Subscribe {
        /// The filter.
        filter: &'a str,
    },
}

/// Answers brokers' questions.
#[derive(Debug)]
pub struct Gate {
    policy: PolicyHandle,
    heard: Option<LastHeard>,
    max_silence: Duration,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Gate {
    /// A gate that obeys this policy. Devices are denied when nothing is `heard` of the coordinator for `max_silence`;
    /// without a coordinator to hear, the policy never gets old.
    pub fn new(policy: PolicyHandle, heard: Option<LastHeard>, max_silence: Duration) -> Self {
        metrics::describe_counter!("fleetkey_gate_allowed_total", "Questions answered with yes, by broker");
        metrics::describe_counter!(
            "fleetkey_gate_refused_total",
            "Questions answered with no, by broker and reason"
        );
        Self { policy, heard, max_silence, refused: Mutex::default() }
    }

    /// May the client with this common name do that? Its client id is part of the question where the broker tells it.
    ///
    /// # Errors
    /// The reason why not.
    pub fn ask(
        &self,
        common_name: &str,
        client_id: Option<&str>,
        what: Question<'_>,
    ) -> Result<Party, Refused> {
        let party = party_of(common_name)?;
        if let Party::Device(_) | Party::Broker = party {
            self.check_fresh()?;
        }
        let policy = self.policy.read();
        match (client_id, party) {
            (Some(client_id), _) => policy.decide_connect(&party, client_id)?,
            // The broker asks before it knows the id, or keeps it to itself: the party has to be let in at least.
            (None, Party::Device(device)) => policy.decide_connect(&party, &device.to_string())?,
            (None, Party::Broker) => policy.decide_connect(&party, RELAY_CLIENT_ID_PREFIX)?,
            (None, Party::Coordinator | Party::Operator) => policy.decide_connect(&party, "coordinator")?,
        }
        match what {
            Question::Connect => {}
            Question::Publish { topic, qos, retain } => {
                policy.decide_publish(&party, topic, 0, qos, retain)?;
            }
            Question::Subscribe { filter } => {
                policy.decide_subscribe(&party, filter)?;
            }
        }
        Ok(party)
    }

    /// How often the answer was no, for this reason.
    pub fn refused(&self, reason: &str) -> u64 {
        self.refusals().get(reason).copied().unwrap_or(0)
    }

    /// How often the answer was no, by reason.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts an answer, and says whether it was yes.
    pub(crate) fn answered<T>(
        &self,
        broker: &'static str,
        common_name: &str,
        answer: Result<T, Refused>,
    ) -> bool {
        match answer {
            Ok(_) => {
                counter!("fleetkey_gate_allowed_total", "broker" => broker).increment(1);
                true
            }
            Err(refused) => {
                let reason = refused.name();
                counter!("fleetkey_gate_refused_total", "broker" => broker, "reason" => reason).increment(1);
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
                let who: String = common_name.chars().take(64).collect();
                tracing::debug!(broker, ?who, reason, %refused, "refused");
                false
            }
        }
    }

    fn check_fresh(&self) -> Result<(), Refused> {
        // Before the first word the policy itself says that it is not known.
        match self.heard.as_ref().and_then(LastHeard::silence) {
            Some(silence) if silence > self.max_silence => {
                Err(Refused::PolicyStale { silence_seconds: silence.as_secs() })
            }
            Some(_) | None => Ok(()),
        }
    }
}
