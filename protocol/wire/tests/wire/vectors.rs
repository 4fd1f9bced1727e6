//! The known answers under `tests/vectors`: what was written once must be written and read alike for ever.
//!
//! A vector has inputs and outputs. Only a vector without outputs is ever filled in, by
//! `FLEETKEY_VECTORS=fill cargo test -p fleetkey-wire vectors`; `tests/vectors/check.py` then computes all of them
//! a second time, from `docs/PROTOCOL.md` alone.

use std::path::PathBuf;
use std::str::FromStr;

use ed25519_dalek::SigningKey;
use fleetkey_wire::keys::{AppKeyLength, LinkKey};
use fleetkey_wire::link::{CoordinatorLink, DeviceLink, OpenedDown, StartSecret};
use fleetkey_wire::payload::{self, Sealer};
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{
    CellEpoch, CellFrame, CellId, CommitMessages, Commitment, Confirmation, DeviceId, DismissReason,
    DownBody, FleetId, Generation, GroupId, GroupSecret, Hello, HelloCell, Kek, KeyEpoch, KeyId, Pairwise,
    Psk, PskId, Reason, ShortAuthenticator, ShortDigest, SignedStatement, Statement, StatementAndWrap, Suite,
    UpBody, Welcome,
};
use serde_json::{Value, json};

use crate::scripted::Scripted;

/// The fields of one JSON object.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get(self, name: &str) -> &'a Value {
        self.0.get(name).unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    fn is_null(self, name: &str) -> bool {
        self.get(name).is_null()
    }

    fn text(self, name: &str) -> &'a str {
        self.get(name).as_str().unwrap()
    }

    fn number(self, name: &str) -> u64 {
        self.get(name).as_u64().unwrap()
    }

    fn small<T: TryFrom<u64, Error: std::fmt::Debug>>(self, name: &str) -> T {
        T::try_from(self.number(name)).unwrap()
    }

    fn list(self, name: &str) -> Vec<Fields<'a>> {
        self.get(name).as_array().unwrap().iter().map(Fields).collect()
    }

    fn bytes(self, name: &str) -> Vec<u8> {
        hex::decode(self.text(name)).unwrap()
    }

    fn optional_bytes(self, name: &str) -> Option<Vec<u8>> {
        (!self.is_null(name)).then(|| self.bytes(name))
    }

    fn list_of_bytes(self, name: &str) -> Vec<Vec<u8>> {
        self.list(name).into_iter().map(|item| hex::decode(item.0.as_str().unwrap()).unwrap()).collect()
    }

    fn fixed<const N: usize>(self, name: &str) -> [u8; N] {
        self.bytes(name).try_into().unwrap()
    }

    fn id<T: FromStr<Err: std::fmt::Debug>>(self, name: &str) -> T {
        self.text(name).parse().unwrap()
    }

    fn key_epoch(self, name: &str) -> KeyEpoch {
        self.id(name)
    }

    fn cell_epoch(self) -> CellEpoch {
        CellEpoch(self.number("cell_epoch"))
    }

    fn suite(self) -> Suite {
        Suite::from_code(self.small("suite")).unwrap()
    }

    fn signing_key(self, name: &str) -> SigningKey {
        SigningKey::from_bytes(&self.fixed(name))
    }

    fn group_secret(self) -> GroupSecret {
        GroupSecret::from_bytes(self.fixed("group_secret"))
    }
}

/// Holds every vector of `file` against what `compute` makes of its inputs.
fn check(file: &str, compute: impl Fn(Fields<'_>) -> Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/vectors")
        .join(file)
        .with_extension("json");
    let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let vectors = document["vectors"].as_array_mut().unwrap();
    assert!(!vectors.is_empty());
    let mut filled = 0;
    for vector in vectors {
        let computed = compute(Fields(&vector["inputs"]));
        if vector["outputs"].is_null() && std::env::var("FLEETKEY_VECTORS").as_deref() == Ok("fill") {
            vector["outputs"] = computed;
            filled += 1;
        } else {
            assert_eq!(vector["outputs"], computed, "{file}: {}", vector["name"]);
        }
    }
    if filled > 0 {
        let text = serde_json::to_string_pretty(&document).unwrap();
        std::fs::write(&path, format!("{text}\n")).unwrap();
    }
}

#[test]
fn keys() {
    check("keys", |inputs| {
        let (fleet, device, group) = (inputs.id("fleet"), inputs.id("device"), inputs.id("group"));
        let coordinator_key = inputs.signing_key("coordinator_seed");
        let device_key = inputs.signing_key("device_seed");
        let coordinators =
            Pairwise::agree(fleet, device, &coordinator_key, device_key.verifying_key().as_bytes()).unwrap();
        let pairwise =
            Pairwise::agree(fleet, device, &device_key, coordinator_key.verifying_key().as_bytes()).unwrap();
        assert_eq!(coordinators, pairwise);
        let secret = inputs.group_secret();
        let length = AppKeyLength::new(inputs.small("app_length")).unwrap();
        json!({
            "coordinator_public_key": hex::encode(coordinator_key.verifying_key()),
            "device_public_key": hex::encode(device_key.verifying_key()),
            "pairwise": hex::encode(pairwise.as_bytes()),
            "link_key": hex::encode(pairwise.link_key().as_bytes()),
            "confirm_key": hex::encode(pairwise.confirm_key(&secret).as_bytes()),
            "commitment": hex::encode(secret.commitment(group, inputs.key_epoch("key_epoch")).0),
            "app_key": hex::encode(secret.app_key(inputs.text("app_label"), &inputs.bytes("app_context"), length)),
        })
    });
}

#[test]
fn statements() {
    const REASONS: [Reason; 8] = [
        Reason::Create,
        Reason::Join,
        Reason::Evict,
        Reason::Revoke,
        Reason::Manual,
        Reason::Distribute,
        Reason::Activate,
        Reason::Retire,
    ];
    check("statement", |inputs| {
        let fleet: FleetId = inputs.id("fleet");
        let key = inputs.signing_key("coordinator_seed");
        let signer = KeyId::of_certificate(&inputs.bytes("certificate"));
        let statement = Statement {
            group: inputs.id("group"),
            key_epoch: inputs.key_epoch("key_epoch"),
            commitment: Commitment(inputs.fixed("commitment")),
            reason: REASONS[inputs.small::<usize>("reason")],
            send: inputs.key_epoch("send"),
            oldest: inputs.key_epoch("oldest"),
            overlap_seconds: inputs.small("overlap_seconds"),
            issued_unix_seconds: inputs.number("issued_unix_seconds"),
        };
        assert_eq!(u64::from(statement.reason.code()), inputs.number("reason"));
        let signed = statement.sign(fleet, signer, &key);
        let read = SignedStatement::verify(signed.as_bytes(), fleet, |id| {
            (id == signer).then(|| key.verifying_key())
        });
        assert_eq!(read.unwrap().statement(), &statement);
        json!({
            "key_id": signer.to_string(),
            "digest": hex::encode(signed.digest().0),
            "statement": hex::encode(signed.as_bytes()),
        })
    });
}

#[test]
fn wraps() {
    check("wrap", |inputs| {
        let context = WrapContext {
            fleet: inputs.id("fleet"),
            cell: inputs.id("cell"),
            cell_epoch: inputs.cell_epoch(),
            suite: inputs.suite(),
        };
        let kek = Kek::from_bytes(inputs.fixed("kek"));
        let statement = SignedStatement::from_trusted(&inputs.bytes("statement")).unwrap();
        let secret = inputs.group_secret();
        let wrapped = wrap::wrap(&context, &kek, &statement, &secret);
        assert_eq!(wrap::open(&context, &kek, &statement, &wrapped), Ok(secret));
        json!({ "wrap": hex::encode(wrapped) })
    });
}

#[test]
fn cell_frames() {
    check("cell-frame", |inputs| {
        let commit = inputs.optional_bytes("commit").map(|commit| CommitMessages {
            covered_updates: inputs.list_of_bytes("covered_updates"),
            commit,
        });
        let rekey = inputs
            .optional_bytes("statement")
            .map(|statement| StatementAndWrap { statement, wrap: inputs.bytes("wrap") });
        let frame = CellFrame { cell_epoch: inputs.cell_epoch(), commit, rekey };
        let encoded = frame.encode();
        assert_eq!(CellFrame::decode(&encoded), Ok(frame));
        json!({ "frame": hex::encode(encoded) })
    });
}

#[test]
fn bodies() {
    check("bodies", |inputs| {
        let body = match inputs.text("direction") {
            "up" => up_body(inputs).encode(),
            "down" => down_body(inputs).encode(),
            other => panic!("no direction {other}"),
        };
        json!({ "body": hex::encode(body) })
    });
}

#[test]
fn link_frames() {
    check("link", |inputs| {
        let device: DeviceId = inputs.id("device");
        let key = LinkKey::from_bytes(inputs.fixed("link_key"));
        let start = StartSecret::random(&mut Scripted::new(&inputs.bytes("start_secret")));
        let mut coordinator_end = CoordinatorLink::default();
        let mut device_end = None;
        let mut frames = Vec::new();
        for step in inputs.list("steps") {
            match step.text("step") {
                "connect" => {
                    let nonce = step.bytes("device_nonce");
                    device_end = Some(DeviceLink::connect(key.clone(), &mut Scripted::new(&nonce)));
                }
                "up" => {
                    let body = up_body(step);
                    let (frame, counter) = device_end.as_mut().unwrap().seal(&body);
                    let opened = coordinator_end.open(&start, device, &key, &frame).unwrap();
                    assert_eq!((opened.body, opened.counter), (body, counter));
                    frames.push(hex::encode(frame));
                }
                "down" => {
                    let body = down_body(step);
                    let frame = coordinator_end.seal(&start, device, &key, &body);
                    let expected =
                        if coordinator_end.is_known() { OpenedDown::Fresh(body) } else { OpenedDown::Poke };
                    assert_eq!(device_end.as_mut().unwrap().open(&frame), Ok(expected));
                    frames.push(hex::encode(frame));
                }
                other => panic!("no step {other}"),
            }
        }
        json!({ "frames": frames })
    });
}

#[test]
fn confirmations() {
    check("confirmation", |inputs| {
        let confirmation = Confirmation {
            fleet: inputs.id("fleet"),
            group: inputs.id("group"),
            key_epoch: inputs.key_epoch("key_epoch"),
            commitment: Commitment(inputs.fixed("commitment")),
            device: inputs.id("device"),
        };
        let pairwise = Pairwise::from_bytes(inputs.fixed("pairwise"));
        let secret = inputs.group_secret();
        let proof = confirmation.prove(&pairwise, &secret);
        assert!(confirmation.holds(&pairwise, &secret, &proof));
        json!({ "proof": hex::encode(proof) })
    });
}

#[test]
fn psks() {
    check("psk", |inputs| {
        let psk = Psk::from_text(inputs.text("file")).unwrap();
        assert_eq!(hex::encode(psk.as_bytes()), inputs.text("file"));
        json!({ "id": hex::encode(psk.id().as_bytes()) })
    });
}

#[test]
fn sealed_messages() {
    check("sealed", |inputs| {
        let suite = inputs.suite();
        let secret = inputs.group_secret();
        let salt: [u8; 16] = inputs.fixed("salt");
        let sender: DeviceId = inputs.id("sender");
        let key_epoch = inputs.key_epoch("key_epoch");
        let mut sealer =
            Sealer::new(suite, inputs.id("group"), key_epoch, &secret, sender, &mut Scripted::new(&salt));
        for _ in 0..inputs.number("counter") {
            sealer.seal(b"", b"", None).unwrap();
        }
        let signer = (!inputs.is_null("signer_seed")).then(|| inputs.signing_key("signer_seed"));
        let (plaintext, context) = (inputs.bytes("plaintext"), inputs.bytes("context"));
        let sealed = sealer.seal(&plaintext, &context, signer.as_ref()).unwrap();
        let opened = payload::open(suite, &secret, &sealed, &context, |asked_for| {
            signer.as_ref().filter(|_| asked_for == sender).map(SigningKey::verifying_key)
        });
        assert_eq!(opened.unwrap().plaintext, plaintext);
        json!({ "sealed": hex::encode(sealed) })
    });
}

fn up_body(fields: Fields<'_>) -> UpBody {
    let body = match fields.text("kind") {
        "hello" => UpBody::Hello(Hello {
            generation: Generation(fields.small("generation")),
            cells: fields.list("cells").into_iter().map(hello_cell).collect(),
        }),
        "key_packages" => {
            UpBody::KeyPackages { suite: fields.suite(), packages: fields.list_of_bytes("packages") }
        }
        "confirm" => UpBody::Confirm {
            group: fields.id("group"),
            key_epoch: fields.key_epoch("key_epoch"),
            statement: ShortDigest(fields.fixed("statement")),
            proof: fields.fixed("proof"),
        },
        "update" => UpBody::Update {
            cell: fields.id("cell"),
            cell_epoch: fields.cell_epoch(),
            proposal: fields.bytes("proposal"),
        },
        "leave" => UpBody::Leave { group: fields.id("group") },
        "evidence" => UpBody::Evidence { statement: fields.bytes("statement") },
        "psks" => UpBody::Psks {
            held: fields
                .list_of_bytes("held")
                .into_iter()
                .map(|id| PskId::from_bytes(id.try_into().unwrap()))
                .collect(),
        },
        other => panic!("no up body {other}"),
    };
    assert_eq!(body.name(), fields.text("kind"));
    assert_eq!(UpBody::decode(&body.encode()).as_ref(), Ok(&body));
    body
}

fn hello_cell(fields: Fields<'_>) -> HelloCell {
    HelloCell {
        cell: fields.id("cell"),
        cell_epoch: fields.cell_epoch(),
        authenticator: ShortAuthenticator(fields.fixed("authenticator")),
        statement: ShortDigest(fields.fixed("statement")),
        key_epoch: fields.key_epoch("key_epoch"),
        send: fields.key_epoch("send"),
        oldest: fields.key_epoch("oldest"),
    }
}

fn down_body(fields: Fields<'_>) -> DownBody {
    let body = match fields.text("kind") {
        "hello_again" => DownBody::HelloAgain,
        "answer" => DownBody::Answer {
            hello: fields.number("hello"),
            hello_interval_seconds: fields.small("hello_interval_seconds"),
            max_silence_seconds: fields.small("max_silence_seconds"),
        },
        "cell_frame" => DownBody::CellFrame { cell: fields.id("cell"), frame: fields.bytes("frame") },
        "welcome" => DownBody::Welcome(Welcome {
            group: fields.id::<GroupId>("group"),
            group_name: fields.text("group_name").to_owned(),
            cell: fields.id::<CellId>("cell"),
            suite: fields.suite(),
            cell_epoch: fields.cell_epoch(),
            welcome: fields.bytes("welcome"),
            statements: fields
                .list("statements")
                .into_iter()
                .map(|one| StatementAndWrap { statement: one.bytes("statement"), wrap: one.bytes("wrap") })
                .collect(),
        }),
        "request_key_packages" => {
            DownBody::RequestKeyPackages { suite: fields.suite(), count: fields.small("count") }
        }
        "request_update" => DownBody::RequestUpdate { cell: fields.id("cell") },
        "dismiss" => DownBody::Dismiss {
            group: fields.id("group"),
            cell: fields.id("cell"),
            reason: match fields.text("reason") {
                "evicted" => DismissReason::Evicted,
                "not_a_member" => DismissReason::NotAMember,
                other => panic!("no dismiss reason {other}"),
            },
        },
        "certificate" => DownBody::Certificate { chain: fields.list_of_bytes("chain") },
        "request_evidence" => DownBody::RequestEvidence { group: fields.id("group") },
        "request_hello" => DownBody::RequestHello,
        other => panic!("no down body {other}"),
    };
    assert_eq!(body.name(), fields.text("kind"));
    assert_eq!(DownBody::decode(&body.encode()).as_ref(), Ok(&body));
    body
}
