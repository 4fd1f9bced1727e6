//! EMQX 5: HTTP authentication and authorisation with JSON bodies.
//!
//! EMQX takes any status but 200 and 204, and any body it cannot read, for "ask the next one", and allows what nobody
//! denies unless told otherwise. So the answer is 200 and a clear word, whatever the question was.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use fleetkey_policy::Qos;
use serde::{Deserialize, Serialize};

use crate::gate::{Gate, Question};
use crate::refused::Refused;

const BROKER: &str = "emqx";

/// `{"result": "allow"}` or `{"result": "deny"}`.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    result: &'static str,
}

/// A client wants in.
#[derive(Debug, Deserialize)]
pub(crate) struct Connect {
    cert_common_name: String,
    clientid: String,
}

/// A client wants to publish or subscribe.
#[derive(Debug, Deserialize)]
pub(crate) struct Act {
    cert_common_name: String,
    clientid: String,
    action: Action,
    topic: String,
    qos: Level,
    retain: Option<Flag>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Publish,
    Subscribe,
}

/// A template fills in numbers as text, or as they are.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Level {
    Number(u8),
    Text(String),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Flag {
    Truth(bool),
    Text(String),
}

pub(crate) async fn connect(
    State(gate): State<Arc<Gate>>,
    request: Result<Json<Connect>, JsonRejection>,
) -> Json<Answer> {
    match request {
        Ok(Json(request)) => {
            let name = &request.cert_common_name;
            answer(&gate, name, gate.ask(name, Some(&request.clientid), Question::Connect))
        }
        Err(rejection) => unreadable(&gate, &rejection),
    }
}

pub(crate) async fn act(
    State(gate): State<Arc<Gate>>,
    request: Result<Json<Act>, JsonRejection>,
) -> Json<Answer> {
    match request {
        Ok(Json(request)) => {
            let allowed = question(&request)
                .and_then(|what| gate.ask(&request.cert_common_name, Some(&request.clientid), what));
            answer(&gate, &request.cert_common_name, allowed)
        }
        Err(rejection) => unreadable(&gate, &rejection),
    }
}

fn question(request: &Act) -> Result<Question<'_>, Refused> {
    let bad = |what: &str| Refused::BadRequest { what: what.to_owned() };
    let qos = match &request.qos {
        Level::Number(0) => Qos::AtMostOnce,
        Level::Number(1) => Qos::AtLeastOnce,
        Level::Number(2) => Qos::ExactlyOnce,
        Level::Number(_) => return Err(bad("qos")),
        Level::Text(text) => match text.as_str() {
            "0" => Qos::AtMostOnce,
            "1" => Qos::AtLeastOnce,
            "2" => Qos::ExactlyOnce,
            _ => return Err(bad("qos")),
        },
    };
    let topic = request.topic.as_str();
    match request.action {
        Action::Subscribe => Ok(Question::Subscribe { filter: topic }),
        Action::Publish => {
            let retain = match &request.retain {
                Some(Flag::Truth(truth)) => *truth,
                Some(Flag::Text(text)) if text == "true" => true,
                Some(Flag::Text(text)) if text == "false" => false,
                Some(Flag::Text(_)) | None => return Err(bad("retain")),
            };
            Ok(Question::Publish { topic, qos, retain })
        }
    }
}

fn unreadable(gate: &Gate, rejection: &JsonRejection) -> Json<Answer> {
    answer::<()>(gate, "", Err(Refused::BadRequest { what: rejection.body_text() }))
}

fn answer<T>(gate: &Gate, common_name: &str, allowed: Result<T, Refused>) -> Json<Answer> {
    Json(Answer { result: if gate.answered(BROKER, common_name, allowed) { "allow" } else { "deny" } })
}
