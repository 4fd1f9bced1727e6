//! What rmqtt asks: CONNECT, PUBLISH, SUBSCRIBE, and again at each delivery.
//!
//! The policy decides about all of them. A client is known by its relay at CONNECT; from then on by its client id, which
//! is a device's own UUID, a relay's, or else a coordinator's: the policy lets nobody in under another's. The question at each delivery
//! closes what lies between a change of policy and the end of a subscription, on whichever node it is.

use std::sync::Arc;

use async_trait::async_trait;
use fleetkey_policy::{Denied, Party, Qos, RELAY_CLIENT_ID_PREFIX};
use fleetkey_wire::{DeviceId, Topic};
use metrics::counter;
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::types::{AuthResult, ConnectInfo, Publish, PublishAclResult, QoS, Subscribe, SubscribeAclResult};

use crate::guests::Guests;
use crate::refusal::Refusal;

/// What is registered in rmqtt, for each of [`Hooks::TYPES`].
pub(crate) struct Hooks(pub(crate) Arc<Guests>);

impl Hooks {
    pub(crate) const TYPES: [Type; 4] = [
        Type::ClientAuthenticate,
        Type::ClientSubscribeCheckAcl,
        Type::MessagePublishCheckAcl,
        Type::MessageExpiryCheck,
    ];

    fn connect(&self, connect: &ConnectInfo) -> Result<(), Refusal> {
        let guests = &self.0;
        let guest =
            connect.id().remote_addr.and_then(|address| guests.at(address)).ok_or(Refusal::NotRelayed)?;
        let client_id: &str = connect.client_id();
        guests.policy.read().decide_connect(&guest.papers.party, client_id)?;
        // One device is one session: of the ways to write a UUID, one is taken.
        if let Party::Device(device) = guest.papers.party
            && client_id != device.to_string()
        {
            return Err(Denied::ClientIdNotDevice { device }.into());
        }
        if connect.last_will().is_some() {
            return Err(Refusal::Will);
        }
        if let ConnectInfo::V5(_, connect) = connect
            && connect.auth_method.is_some()
        {
            return Err(Refusal::AuthenticationMethod);
        }
        // One CONNECT in a connection.
        if guest.admit(client_id) { Ok(()) } else { Err(Refusal::NotRelayed) }
    }

    fn subscribe(&self, client_id: &str, subscribe: &Subscribe) -> Result<(), Refusal> {
        if subscribe.opts.has_shared_group() {
            return Err(Refusal::SharedSubscription);
        }
        self.0.policy.read().decide_subscribe(&party_of(client_id), &subscribe.topic_filter)?;
        Ok(())
    }

    fn publish(&self, client_id: &str, publish: &Publish) -> Result<(), Refusal> {
        let qos = match publish.qos {
            QoS::AtMostOnce => Qos::AtMostOnce,
            QoS::AtLeastOnce => Qos::AtLeastOnce,
            QoS::ExactlyOnce => Qos::ExactlyOnce,
        };
        self.0.policy.read().decide_publish(
            &party_of(client_id),
            &publish.topic,
            publish.payload.len(),
            qos,
            publish.retain,
        )?;
        Ok(())
    }

    /// May it have this, still?
    fn may_have(&self, client_id: &str, topic: &str) -> bool {
        let policy = self.0.policy.read();
        match party_of(client_id) {
            party @ (Party::Device(_) | Party::Broker) => policy.decide_subscribe(&party, topic).is_ok(),
            Party::Coordinator | Party::Operator => {
                matches!(Topic::parse(topic), Ok(Topic::Up { fleet, .. }) if fleet == policy.fleet())
            }
        }
    }
}

#[async_trait]
impl Handler for Hooks {
    #[expect(clippy::wildcard_enum_match_arm, reason = "rmqtt asks more than is registered for")]
    async fn hook(&self, parameter: &Parameter, so_far: Option<HookResult>) -> ReturnType {
        let guests = &self.0;
        match parameter {
            Parameter::ClientAuthenticate(connect) => {
                let answer = match self.connect(connect) {
                    Ok(()) => AuthResult::Allow(false, None),
                    Err(refusal) => {
                        guests.refused(&connect.client_id(), &refusal);
                        AuthResult::NotAuthorized
                    }
                };
                (false, Some(HookResult::AuthResult(answer)))
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let client_id = &session.id.client_id;
                let answer = match self.subscribe(client_id, subscribe) {
                    Ok(()) => SubscribeAclResult::new_success(QoS::AtLeastOnce, None),
                    Err(refusal) => {
                        guests.refused(client_id, &refusal);
                        SubscribeAclResult::new_failure(SubscribeAckReason::NotAuthorized)
                    }
                };
                (false, Some(HookResult::SubscribeAclResult(answer)))
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let client_id = &session.id.client_id;
                let answer = match self.publish(client_id, publish) {
                    Ok(()) => PublishAclResult::allow(),
                    Err(refusal) => {
                        guests.refused(client_id, &refusal);
                        // MQTT 3.1.1 §3.3.5.2 allows nothing between this and a lie.
                        PublishAclResult::rejected(true, None)
                    }
                };
                (false, Some(HookResult::PublishAclResult(answer)))
            }
            Parameter::MessageExpiryCheck(session, _, publish) => {
                if self.may_have(&session.id.client_id, &publish.topic) {
                    (true, so_far)
                } else {
                    counter!("fleetkey_broker_withheld_total").increment(1);
                    (false, Some(HookResult::MessageExpiry))
                }
            }
            _ => (true, so_far),
        }
    }
}

/// Who was let in under this client id.
fn party_of(client_id: &str) -> Party {
    match client_id.parse::<DeviceId>() {
        Ok(device) => Party::Device(device),
        Err(_) if client_id.starts_with(RELAY_CLIENT_ID_PREFIX) => Party::Broker,
        Err(_) => Party::Coordinator,
    }
}
