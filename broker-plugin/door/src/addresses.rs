//! How many connections each address has, where that is limited.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Open connections by address.
#[derive(Debug)]
pub struct Addresses {
    limit: Option<usize>,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that counts against its address for as long as this lives.
#[derive(Debug)]
pub struct Counted<'a> {
    addresses: &'a Addresses,
    address: IpAddr,
}

/// No room for one more from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many connections from this address")]
pub struct TooManyFromAddress;

impl Addresses {
    /// At most so many from each address; without a limit nothing is counted.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, counts: Mutex::default() }
    }

    /// One more from there, if there may be.
    ///
    /// # Errors
    /// [`TooManyFromAddress`].
    pub fn count(&self, address: IpAddr) -> Result<Option<Counted<'_>>, TooManyFromAddress> {
        let Some(limit) = self.limit else { return Ok(None) };
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return Err(TooManyFromAddress);
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
