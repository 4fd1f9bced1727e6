//! Attacks on the enrolment server by name: each gets nothing, nothing is registered because of it, and others are served
//! meanwhile. `docs/SECURITY.md` has the list of all.

#![expect(clippy::unwrap_used, reason = "a test's failure is its report")]

mod door;
mod openssl;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetkey_est::{Limits, MAX_BODY_BYTES};
use fleetkey_identity::{FleetCa, IdentityKey, Role, Validity, signing_request};
use rand_core::OsRng;
use tokio::io::AsyncWriteExt as _;

use crate::door::{CLAIM, DEVICE, Door, FLEET, days, drip, enrol, is_shown_out, local, post};
use crate::openssl::OpenSsl;

fn csr() -> Vec<u8> {
    signing_request(&IdentityKey::generate(&mut OsRng), "pump-3")
}

#[tokio::test(flavor = "multi_thread")]
async fn slowloris() {
    let limits = Limits {
        max_connections: 40,
        handshake_timeout: Duration::from_millis(500),
        head_timeout: Duration::from_millis(500),
        connection_timeout: Duration::from_secs(2),
    };
    let door = Door::open(limits).await;
    // As many as one address may hold: silent, half-way into TLS, dripping a head, dripping a body.
    let mut slow = Vec::new();
    for kind in 0..10 {
        slow.push(match kind % 5 {
            0 => tokio::spawn(is_shown_out(door.reach(local(1)).await)),
            1 => {
                let mut half = door.reach(local(1)).await;
                half.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
                tokio::spawn(is_shown_out(half))
            }
            2 => {
                let hello =
                    [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03][..], &[0; 500]];
                tokio::spawn(drip(door.reach(local(1)).await, hello.concat()))
            }
            3 => {
                let endless =
                    [b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 4_096]];
                tokio::spawn(drip(door.tls(local(1), None).await.unwrap(), endless.concat()))
            }
            _ => {
                let mut stream = door.tls(local(1), None).await.unwrap();
                let request = enrol(CLAIM, &[b'A'; 8_192]);
                let (head, body) = request.split_at(request.len() - 8_192);
                stream.write_all(head).await.unwrap();
                tokio::spawn(drip(stream, body.to_vec()))
            }
        });
    }
    // Who comes from elsewhere is served meanwhile.
    door.still_serves(local(2), &csr()).await;
    for (kind, one) in slow.into_iter().enumerate() {
        assert!(one.await.unwrap(), "it was left in place: {}", kind % 5);
    }
    assert_eq!(door.desk.registered(), (1, 0), "nobody but the one");
    door.still_serves(local(1), &csr()).await;
}

#[tokio::test]
async fn expired_and_not_yet_valid_certificates() {
    let door = Door::open(Limits::default()).await;
    let key = IdentityKey::generate(&mut OsRng);
    let chain = |role: &Role, validity| {
        door.desk.ca.chain(door.desk.ca.issue(role, &key.public_key(), &[], validity).unwrap())
    };
    let device = Role::Device(DEVICE);
    let renew = post("simplereenroll", "", &csr());
    for validity in [days(-30, -1), days(1, 30)] {
        let status = door.ask(local(1), Some((&chain(&device, validity), &key)), &renew).await;
        assert_eq!(status, None, "TLS itself refuses it");
    }
    // Another CA's, with the same names; and a good one of somebody who is no device.
    let stranger = FleetCa::create(FLEET, &mut OsRng, Validity::without_end(0)).unwrap();
    let copied = stranger.chain(stranger.issue(&device, &key.public_key(), &[], days(-1, 1)).unwrap());
    assert_eq!(door.ask(local(1), Some((&copied, &key)), &renew).await, None);
    let operator = chain(&Role::Operator { name: "ada".into() }, days(-1, 1));
    assert_eq!(door.ask(local(1), Some((&operator, &key)), &renew).await, Some(403));
    assert_eq!(door.desk.registered(), (0, 0));

    let good = chain(&device, days(-1, 1));
    assert_eq!(door.ask(local(1), Some((&good, &key)), &renew).await, Some(200));
    assert_eq!(door.desk.registered(), (0, 1));
}

#[tokio::test]
async fn guessed_claims() {
    let door = Door::open(Limits::default()).await;
    let mut statuses = Vec::new();
    for guess in 0..25 {
        let request = enrol(&format!("hall-3:{guess}"), &csr());
        statuses.push(door.ask(local(3), None, &request).await.unwrap());
    }
    assert_eq!(statuses[..20], [401; 20]);
    assert_eq!(statuses[20..], [503; 5], "then it has to wait");
    // Also with the right one, and others do not.
    assert_eq!(door.ask(local(3), None, &enrol(CLAIM, &csr())).await, Some(503));
    assert_eq!(door.desk.registered(), (0, 0));
    door.still_serves(local(4), &csr()).await;
}

#[tokio::test]
async fn der_bombs() {
    let door = Door::open(Limits::default()).await;
    let good = csr();
    let nested = |tag: u8, levels: usize| {
        (0..levels).fold(Vec::new(), |inner: Vec<u8>, _| {
            let length = u16::try_from(inner.len()).unwrap().to_be_bytes();
            [&[tag, 0x82, length[0], length[1]][..], &inner].concat()
        })
    };
    let mut bombs = vec![
        nested(0x30, 2_000),
        nested(0xa0, 2_000),
        [0x30, 0x80].repeat(4_000),
        [&[0x30, 0x88][..], &[0xff; 8]].concat(),
        [&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff][..], &good].concat(),
        [&[0x30, 0xfe][..], &[0xff; 126]].concat(),
        [&good[..], &[0]].concat(),
        vec![0x30; 15_000],
    ];
    bombs.extend((1..good.len()).step_by(17).map(|end| good[..end].to_vec()));
    for bomb in &bombs {
        for body in [bomb.clone(), STANDARD.encode(bomb).into_bytes()] {
            let status = door.ask(local(1), None, &enrol(CLAIM, &body)).await;
            // What is over the limit is not read to its end: the answer may be lost with the connection.
            let is_cut_off = status.is_none() && body.len() > MAX_BODY_BYTES;
            assert!(is_cut_off || matches!(status, Some(400 | 413)), "{status:?}: {body:02x?}");
        }
    }
    for body in [vec![b'A'; 16_000], vec![b'='; 64], vec![0xff; 64], Vec::new()] {
        let status = door.ask(local(1), None, &enrol(CLAIM, &body)).await;
        assert!(matches!(status, Some(400 | 413)), "{status:?}");
    }
    assert_eq!(door.desk.registered(), (0, 0));
    door.still_serves(local(1), &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_renegotiation_flood() {
    let door = Door::open(Limits::default()).await;
    let address = door.address;
    let flood = tokio::task::spawn_blocking(move || {
        for round in 0..20 {
            let Some(mut client) = OpenSsl::start(address, "-tls1_2") else { return false };
            assert!(client.says("Verify return code"), "round {round}: TLS 1.2 itself is spoken");
            assert!(client.command("R"));
            // No second handshake: a warning, on which OpenSSL gives up.
            let rest = client.until_its_end();
            assert!(rest.contains("RENEGOTIATING"), "round {round}: it asks: {rest}");
            assert!(rest.contains("no_renegotiation"), "round {round}: and is refused: {rest}");
            assert!(
                !rest.contains("Finished"),
                "round {round}: no handshake was finished after that: {rest}"
            );
        }
        true
    });
    if !flood.await.unwrap() {
        eprintln!("NOT RUN: openssl is not installed");
        return;
    }
    assert_eq!(door.desk.registered(), (0, 0));
    door.still_serves(local(1), &csr()).await;
}

/// More than anybody sends before the end of the connection has reached it, however busy the machine is.
const MANY_UPDATES: u32 = 4_000;

#[tokio::test(flavor = "multi_thread")]
async fn tls_key_update_flood() {
    let door = Door::open(Limits::default()).await;
    let address = door.address;
    let flood = tokio::task::spawn_blocking(move || {
        let mut client = OpenSsl::start(address, "-tls1_3")?;
        assert!(client.says("Verify return code"));
        let mut updates = 0;
        while updates < MANY_UPDATES && client.command("K") && client.says("KEYUPDATE") {
            updates += 1;
        }
        Some(updates)
    });
    let Some(updates) = flood.await.unwrap() else {
        eprintln!("NOT RUN: openssl is not installed");
        return;
    };
    // Some are granted; then the connection ends, and the client goes on until it hears of that.
    assert!((2..MANY_UPDATES).contains(&updates), "{updates} updates of keys in a row");
    assert_eq!(door.desk.registered(), (0, 0));
    door.still_serves(local(1), &csr()).await;
}
