//! The sizes that the protocol promises, and what its limits leave room for.

use fleetkey_wire::link::{CoordinatorLink, DeviceLink, StartSecret};
use fleetkey_wire::payload::{MAX_SEALED_BYTES, SALT_BYTES, Sealer};
use fleetkey_wire::wrap::{WrapContext, wrap};
use fleetkey_wire::{
    CellEpoch, CellFrame, Confirmation, Generation, Hello, HelloCell, KeyEpoch, ShortAuthenticator,
    Statement, StatementAndWrap, Suite, UpBody,
};

use crate::support::*;

/// Every number as large as it can be, so that it takes the most bytes.
fn largest_statement() -> Statement {
    let largest = KeyEpoch(u64::MAX);
    Statement {
        key_epoch: largest,
        send: largest,
        oldest: largest,
        commitment: secret().commitment(GROUP, largest),
        overlap_seconds: u32::MAX,
        issued_unix_seconds: u64::MAX,
        ..statement()
    }
}

fn frame_of(statement: Statement, cell_epoch: CellEpoch, suite: Suite) -> Vec<u8> {
    let signed = statement.sign(FLEET, SIGNER, &coordinator_key());
    let context = WrapContext { cell_epoch, ..wrap_context(suite) };
    let wrap = wrap(&context, &kek(), &signed, &secret());
    let rekey = Some(StatementAndWrap { statement: signed.as_bytes().to_vec(), wrap });
    CellFrame { cell_epoch, commit: None, rekey }.encode()
}

#[test]
fn statement_and_wrap_take_at_most_300_bytes_on_a_cell_topic() {
    for suite in Suite::ALL {
        let usual = frame_of(statement(), CELL_EPOCH, suite);
        let largest = frame_of(largest_statement(), CellEpoch(u64::MAX), suite);
        println!("{suite}: statement + wrap take {} bytes, at most {}", usual.len(), largest.len());
        assert!(largest.len() <= 300, "{suite}: {} bytes", largest.len());
        assert!(CellFrame::decode(&largest).is_ok());
    }
}

#[test]
fn a_confirmation_takes_at_most_140_bytes_on_an_up_topic() {
    let mut rng = rng();
    let start = StartSecret::random(&mut rng);
    let key = link_key();
    let mut device = DeviceLink::connect(key.clone(), &mut rng);
    let mut coordinator = CoordinatorLink::default();
    let (hello, _) = device.seal(&UpBody::Hello(Hello { generation: Generation(1), cells: Vec::new() }));
    coordinator.open(&start, DEVICE, &key, &hello).unwrap();
    let again = coordinator.seal(&start, DEVICE, &key, &fleetkey_wire::DownBody::HelloAgain);
    device.open(&again).unwrap();

    let key_epoch = KeyEpoch(u64::MAX);
    let confirmation =
        Confirmation { fleet: FLEET, group: GROUP, key_epoch, commitment: commitment(), device: DEVICE };
    let proof = confirmation.prove(&pairwise(), &secret());
    let (frame, _) = device.seal(&UpBody::Confirm { group: GROUP, key_epoch, statement: DIGEST, proof });

    // A counter takes one byte up to 23, and nine at the very most.
    let largest = frame.len() + 8;
    println!("a confirmation takes {} bytes, at most {largest}", frame.len());
    assert!(largest <= 140, "{largest} bytes");
}

#[test]
fn a_hello_of_every_cell_a_device_may_be_in_fits() {
    let cell = HelloCell {
        cell: CELL,
        cell_epoch: CellEpoch(u64::MAX),
        authenticator: ShortAuthenticator([0x77; 8]),
        statement: DIGEST,
        key_epoch: KeyEpoch(u64::MAX),
        send: KeyEpoch(u64::MAX),
        oldest: KeyEpoch(u64::MAX),
    };
    let cells = vec![cell; fleetkey_wire::limits::MAX_CELLS_PER_DEVICE];
    let hello = UpBody::Hello(Hello { generation: Generation(u32::MAX), cells });
    let (frame, _) = DeviceLink::connect(link_key(), &mut rng()).seal(&hello);
    println!("a hello of 32 cells takes {} bytes", frame.len());
    assert!(frame.len() <= fleetkey_wire::limits::MAX_UP_FRAME_BYTES);
}

#[test]
fn the_largest_message_that_can_be_sealed_can_be_opened() {
    let largest = vec![0x99; MAX_SEALED_BYTES - 256];
    for signer in [None, Some(device_key())] {
        let mut sealer = Sealer::new(Suite::Aes128Gcm, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng());
        let sealed = sealer.seal(&largest, b"", signer.as_ref()).unwrap();
        println!("sealing adds {} bytes (salt: {SALT_BYTES})", sealed.len() - largest.len());
        assert!(sealed.len() <= MAX_SEALED_BYTES);
        let opened = fleetkey_wire::payload::open(Suite::Aes128Gcm, &secret(), &sealed, b"", |_| {
            Some(device_key().verifying_key())
        })
        .unwrap();
        assert_eq!(opened.plaintext, largest);

        let over = vec![0; largest.len() + 1];
        assert!(sealer.seal(&over, b"", None).is_err());
    }
}
