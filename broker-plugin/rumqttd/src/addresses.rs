//! How many connections each address has, where that is limited.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::refusal::Refusal;

/// Open connections by address.
#[derive(Debug)]
pub(crate) struct Addresses {
    limit: Option<usize>,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that counts against its address for as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted<'a> {
    addresses: &'a Addresses,
    address: IpAddr,
}

impl Addresses {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self { limit, counts: Mutex::default() }
    }

    /// One more from there, if there may be.
    pub(crate) fn count(&self, address: IpAddr) -> Result<Option<Counted<'_>>, Refusal> {
        let Some(limit) = self.limit else { return Ok(None) };
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return Err(Refusal::TooManyFromAddress);
        }
        *count += 1;
        Ok(Some(Counted { addresses: self, address }))
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
