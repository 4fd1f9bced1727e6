//! Where connections on the loopback interface come from.

use std::net::Ipv4Addr;

/// An address has some 28,000 ports, and the system finds half of them at once: the others it looks for one by one.
const CONNECTIONS_PER_ADDRESS: usize = 8_000;

/// The first of the addresses that a process connects from, by the number of the process; no other has them.
pub(crate) fn first_source(process: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1 + (process % 250) as u8, 0, 1)
}

/// The address that a connection comes from.
pub(crate) fn source(first: Ipv4Addr, connection: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + (connection / CONNECTIONS_PER_ADDRESS) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_has_more_connections_than_it_has_ports_at_hand() {
        let all = |process| (0..20_000).map(move |connection| source(first_source(process), connection));
        let from = |process, address| all(process).filter(|source| *source == address).count();
        assert_eq!(from(0, Ipv4Addr::new(127, 1, 0, 1)), 8_000);
        assert_eq!(from(0, Ipv4Addr::new(127, 1, 0, 3)), 4_000);
        assert!(all(1).all(|source| source.octets()[1] == 2), "each process has its own");
    }
}
