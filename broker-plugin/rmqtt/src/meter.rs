//! Where MQTT packets begin and end in a stream of bytes, and how long they are: enough to hold a client to its limits
//! without reading what it says.

use crate::refusal::Refusal;

/// The largest CONNECT: it carries an id and nothing we use besides.
const MAX_CONNECT_BYTES: usize = 4 * 1024;

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;

/// A packet whose length is known; its body need not have come yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    /// All of it, fixed header included.
    pub(crate) bytes: usize,
    first: u8,
}

impl Packet {
    /// A publish that is to be acknowledged.
    pub(crate) const fn wants_acknowledgement(self) -> bool {
        self.first >> 4 == PUBLISH && self.first & 0b110 != 0
    }

    /// The acknowledgement of a publish.
    pub(crate) const fn is_acknowledgement(self) -> bool {
        self.first >> 4 == PUBACK
    }
}

/// Finds the packets in one direction of a connection.
#[derive(Debug)]
pub(crate) struct Meter {
    limit: usize,
    at: At,
    /// What comes first, and is not whole yet.
    connect_is_due: bool,
}

#[derive(Debug, Clone, Copy)]
enum At {
    /// The first byte of a packet.
    First,
    /// Its length (MQTT 3.1.1 §2.2.3).
    Length { first: u8, value: usize, digits: u32 },
    /// So many bytes more.
    Body { left: usize },
}

impl Meter {
    /// What a client says: a CONNECT, then packets of at most `limit` bytes.
    pub(crate) const fn of_client(limit: usize) -> Self {
        Self { limit, at: At::First, connect_is_due: true }
    }

    /// What a server says.
    pub(crate) const fn of_server() -> Self {
        Self { limit: usize::MAX, at: At::First, connect_is_due: false }
    }

    /// Whether the CONNECT is still to come, or a part of it.
    pub(crate) const fn connect_is_due(&self) -> bool {
        self.connect_is_due
    }

    /// Takes the next bytes; tells of each packet whose length is among them.
    ///
    /// # Errors
    /// When a packet is too long, or none at all.
    pub(crate) fn take(&mut self, mut bytes: &[u8], mut found: impl FnMut(Packet)) -> Result<(), Refusal> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.at {
                At::First => {
                    if self.connect_is_due && byte >> 4 != CONNECT {
                        return Err(Refusal::Malformed);
                    }
                    self.at = At::Length { first: byte, value: 0, digits: 0 };
                    bytes = rest;
                }
                At::Length { first, value, digits } => {
                    let value = value | usize::from(byte & 0x7f) << (7 * digits);
                    bytes = rest;
                    if byte & 0x80 != 0 {
                        if digits == 3 {
                            return Err(Refusal::Malformed);
                        }
                        self.at = At::Length { first, value, digits: digits + 1 };
                        continue;
                    }
                    let packet = Packet { bytes: 2 + digits as usize + value, first };
                    let limit = if self.connect_is_due { MAX_CONNECT_BYTES } else { self.limit };
                    if packet.bytes > limit {
                        return Err(Refusal::PacketTooLarge { limit });
                    }
                    found(packet);
                    self.go_on_with(value);
                }
                At::Body { left } => {
                    let taken = left.min(bytes.len());
                    bytes = &bytes[taken..];
                    self.go_on_with(left - taken);
                }
            }
        }
        Ok(())
    }

    const fn go_on_with(&mut self, left: usize) {
        if left == 0 {
            self.connect_is_due = false;
            self.at = At::First;
        } else {
            self.at = At::Body { left };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CONNECT of 12 bytes, a publish of 2 + 130 at QoS 1, an acknowledgement, a ping.
    fn stream() -> Vec<u8> {
        let mut bytes = vec![0x10, 10];
        bytes.extend([0; 10]);
        bytes.extend([0x32, 0x82, 0x01]);
        bytes.extend([0xff; 130]);
        bytes.extend([0x40, 2, 0, 1]);
        bytes.extend([0xc0, 0]);
        bytes
    }

    #[test]
    fn packets_are_found_wherever_reads_end() {
        let bytes = stream();
        for step in 1..bytes.len() {
            let (mut meter, mut found) = (Meter::of_client(1_000), Vec::new());
            for chunk in bytes.chunks(step) {
                meter.take(chunk, |packet| found.push(packet)).unwrap();
            }
            let lengths: Vec<_> = found.iter().map(|packet| packet.bytes).collect();
            assert_eq!(lengths, [12, 133, 4, 2], "in steps of {step}");
            assert!(found[1].wants_acknowledgement() && found[2].is_acknowledgement());
            assert!(!found[3].wants_acknowledgement() && !found[3].is_acknowledgement());
            assert!(!meter.connect_is_due());
        }
    }

    #[test]
    fn half_a_connect_is_still_due() {
        let mut meter = Meter::of_client(1_000);
        meter.take(&stream()[..11], |_| {}).unwrap();
        assert!(meter.connect_is_due());
        meter.take(&stream()[11..12], |_| {}).unwrap();
        assert!(!meter.connect_is_due());
    }

    #[test]
    fn what_is_too_long_or_no_packet_is_refused() {
        let take = |bytes: &[u8]| Meter::of_client(1_000).take(bytes, |_| {});
        assert_eq!(take(&[0x30, 0]), Err(Refusal::Malformed), "a CONNECT comes first");
        assert_eq!(take(&[0x10, 0xff, 0xff, 0xff, 0xff]), Err(Refusal::Malformed));
        assert_eq!(take(&[0x10, 0xff, 0x7f]), Err(Refusal::PacketTooLarge { limit: MAX_CONNECT_BYTES }));
        let mut meter = Meter::of_client(1_000);
        meter.take(&[0x10, 0], |_| {}).unwrap();
        assert_eq!(meter.take(&[0x30, 0xe8, 0x07], |_| {}), Err(Refusal::PacketTooLarge { limit: 1_000 }));
    }
}
