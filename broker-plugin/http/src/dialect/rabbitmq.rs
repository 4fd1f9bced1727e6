//! RabbitMQ's `rabbitmq_auth_backend_http`: four questions as query or form, `allow` or `deny` as text.
//!
//! An MQTT client of RabbitMQ is a user with a queue, `mqtt-subscription-CLIENTIDqosN`, which is bound to the exchange
//! `amq.topic`: these two resources are all that a party has a use for. Topics arrive as routing keys, `/` turned into
//! `.` and `+` into `*`; what is retained, and at which QoS, does not arrive.

use std::sync::Arc;

use axum::extract::rejection::FormRejection;
use axum::extract::{Form, State};
use fleetkey_policy::{Party, Qos, RELAY_CLIENT_ID_PREFIX};
use serde::Deserialize;

use crate::gate::{Gate, Question};
use crate::refused::Refused;

const BROKER: &str = "rabbitmq";
/// Where RabbitMQ puts what MQTT clients publish.
const EXCHANGE: &str = "amq.topic";
const QUEUE_PREFIX: &str = "mqtt-subscription-";
const QUEUE_SUFFIXES: [&str; 2] = ["qos0", "qos1"];

/// A user wants in: it has shown a certificate with this common name, or says a password.
#[derive(Deserialize)]
pub(crate) struct User {
    username: String,
    password: Option<String>,
    client_id: Option<String>,
}

/// A user wants to use a virtual host.
#[derive(Debug, Deserialize)]
pub(crate) struct VirtualHost {
    username: String,
    client_id: Option<String>,
}

/// A user wants to use an exchange or a queue.
#[derive(Debug, Deserialize)]
pub(crate) struct Resource {
    username: String,
    resource: String,
    name: String,
    permission: Permission,
    client_id: Option<String>,
}

/// A user wants to publish or bind with a routing key.
#[derive(Debug, Deserialize)]
pub(crate) struct RoutingKey {
    username: String,
    name: String,
    permission: Permission,
    routing_key: String,
    #[serde(rename = "variable_map.client_id")]
    client_id: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Permission {
    Configure,
    Write,
    Read,
}

type Asked<T> = Result<Form<T>, FormRejection>;

pub(crate) async fn user(State(gate): State<Arc<Gate>>, asked: Asked<User>) -> &'static str {
    answer(
        &gate,
        asked,
        |user: &User| &user.username,
        |user| {
            // RabbitMQ prefers a name and password that a client says to the name in its certificate.
            if user.password.is_some() {
                return Err(Refused::Password);
            }
            gate.ask(&user.username, user.client_id.as_deref(), Question::Connect)
        },
    )
}

pub(crate) async fn virtual_host(State(gate): State<Arc<Gate>>, asked: Asked<VirtualHost>) -> &'static str {
    answer(
        &gate,
        asked,
        |host: &VirtualHost| &host.username,
        |host| gate.ask(&host.username, host.client_id.as_deref(), Question::Connect),
    )
}

pub(crate) async fn resource(State(gate): State<Arc<Gate>>, asked: Asked<Resource>) -> &'static str {
    answer(
        &gate,
        asked,
        |resource: &Resource| &resource.username,
        |resource| {
            let party = gate.ask(&resource.username, resource.client_id.as_deref(), Question::Connect)?;
            let is_ours = match (resource.resource.as_str(), resource.permission) {
                ("exchange", Permission::Read | Permission::Write) => resource.name == EXCHANGE,
                ("queue", Permission::Read | Permission::Write | Permission::Configure) => {
                    client_id_of_queue(&resource.name)
                        .is_some_and(|client_id| has_client_id(party, client_id))
                }
                _ => false,
            };
            if is_ours { Ok(party) } else { Err(Refused::UnknownResource) }
        },
    )
}

pub(crate) async fn topic(State(gate): State<Arc<Gate>>, asked: Asked<RoutingKey>) -> &'static str {
    answer(
        &gate,
        asked,
        |key: &RoutingKey| &key.username,
        |key| {
            if key.name != EXCHANGE {
                return Err(Refused::UnknownResource);
            }
            let topic = topic_of(&key.routing_key)?;
            let what = match key.permission {
                Permission::Write => Question::Publish { topic: &topic, qos: Qos::AtMostOnce, retain: false },
                Permission::Read => Question::Subscribe { filter: &topic },
                Permission::Configure => return Err(Refused::UnknownResource),
            };
            gate.ask(&key.username, key.client_id.as_deref(), what)
        },
    )
}

fn client_id_of_queue(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(QUEUE_PREFIX)?;
    QUEUE_SUFFIXES.iter().find_map(|suffix| rest.strip_suffix(suffix))
}

fn has_client_id(party: Party, client_id: &str) -> bool {
    let device = client_id.parse();
    match party {
        Party::Device(own) => device == Ok(own),
        Party::Coordinator => device.is_err() && client_id.starts_with("coordinator"),
        Party::Broker => client_id.starts_with(RELAY_CLIENT_ID_PREFIX),
        Party::Operator => false,
    }
}

/// What MQTT clients know a routing key as. Ours have no dots in them, so that there is one for each.
fn topic_of(routing_key: &str) -> Result<String, Refused> {
    if routing_key.contains(['/', '+']) {
        return Err(Refused::BadRequest { what: "a routing key with / or +".to_owned() });
    }
    Ok(routing_key.replace('.', "/").replace('*', "+"))
}

fn answer<T, A>(
    gate: &Gate,
    asked: Asked<T>,
    name: impl Fn(&T) -> &str,
    decide: impl FnOnce(&T) -> Result<A, Refused>,
) -> &'static str {
    let is_allowed = match &asked {
        Ok(Form(question)) => gate.answered(BROKER, name(question), decide(question)),
        Err(rejection) => {
            gate.answered::<A>(BROKER, "", Err(Refused::BadRequest { what: rejection.body_text() }))
        }
    };
    if is_allowed { "allow" } else { "deny" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_keys_and_topics_are_the_same_thing_in_two_spellings() {
        assert_eq!(topic_of("fk.a.dev.*.up").unwrap(), "fk/a/dev/+/up");
        assert_eq!(topic_of("#").unwrap(), "#");
        for twin in ["fk/a/dev/b/up", "fk.a.dev.+.up"] {
            assert!(topic_of(twin).is_err(), "{twin}");
        }
    }

    #[test]
    fn a_queue_belongs_to_one_client() {
        assert_eq!(client_id_of_queue("mqtt-subscription-xqos1"), Some("x"));
        for other in ["mqtt-subscription-x", "mqtt-subscription-xqos2", "Mqtt-subscription-xqos1", "x", ""] {
            assert_eq!(client_id_of_queue(other), None, "{other}");
        }
    }
}
