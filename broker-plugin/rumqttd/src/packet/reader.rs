//! The primitive types of MQTT, taken one after the other from the body of a packet.

use fleetkey_policy::Qos;

use super::malformed::Malformed;

/// What is left of a packet's body.
pub(super) struct Reader<'a>(&'a [u8]);

/// The value of an MQTT 5 property, where we look at it.
pub(super) enum Property {
    Byte(u8),
    Two(u16),
    Four(u32),
    /// Anything else: checked and skipped.
    Skipped,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that is left.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) const fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::TrailingBytes { bytes: self.0.len() }) }
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn two(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    pub(super) fn four(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from(self.two()?) << 16 | u32::from(self.two()?))
    }

    /// A variable byte integer (MQTT 5 §1.5.5).
    pub(super) fn variable(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::RemainingLength)
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(bytes).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        let bytes = self.two()?;
        self.take(usize::from(bytes))
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Malformed> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Malformed::BadString)?;
        if text.contains('\0') { Err(Malformed::BadString) } else { Ok(text) }
    }

    pub(super) fn packet_id(&mut self) -> Result<u16, Malformed> {
        match self.two()? {
            0 => Err(Malformed::PacketIdZero),
            id => Ok(id),
        }
    }

    /// Properties (MQTT 5 §2.2.2): each must be among `allowed`, and only a user property may come twice.
    pub(super) fn properties(
        &mut self,
        allowed: &[u8],
        mut each: impl FnMut(u8, Property) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let bytes = self.variable()?;
        let mut reader = Self(self.take(bytes as usize)?);
        let mut seen = 0u64;
        while !reader.is_empty() {
            let id = reader.byte()?;
            let bit = 1u64.checked_shl(u32::from(id)).unwrap_or(0);
            if !allowed.contains(&id) || (seen & bit != 0 && id != USER_PROPERTY) {
                return Err(Malformed::BadProperty { id });
            }
            seen |= bit;
            let value = reader.property(id)?;
            each(id, value)?;
        }
        Ok(())
    }

    fn property(&mut self, id: u8) -> Result<Property, Malformed> {
        Ok(match id {
            0x01 | 0x17 | 0x19 => Property::Byte(self.byte()?),
            0x21..=0x23 => Property::Two(self.two()?),
            0x02 | 0x11 | 0x18 | 0x27 => Property::Four(self.four()?),
            0x0b => {
                self.variable()?;
                Property::Skipped
            }
            0x03 | 0x08 | 0x15 | 0x1f => {
                self.string()?;
                Property::Skipped
            }
            0x09 | 0x16 => {
                self.binary()?;
                Property::Skipped
            }
            USER_PROPERTY => {
                self.string()?;
                self.string()?;
                Property::Skipped
            }
            id => return Err(Malformed::BadProperty { id }),
        })
    }
}

/// The one property that may be given more than once.
pub(super) const USER_PROPERTY: u8 = 0x26;

/// QoS from its two bits.
pub(super) const fn qos(bits: u8) -> Result<Qos, Malformed> {
    match bits & 3 {
        0 => Ok(Qos::AtMostOnce),
        1 => Ok(Qos::AtLeastOnce),
        2 => Ok(Qos::ExactlyOnce),
        _ => Err(Malformed::Qos3),
    }
}
