//! A part, seen from the process that has started it.

use std::io;
use std::process::Stdio;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::orders::{bounded, decode, encode};

/// A part does not do what it is told.
#[derive(Debug, thiserror::Error)]
#[error("the process of the {name}: {source}")]
pub struct PartFailed {
    name: &'static str,
    #[source]
    source: io::Error,
}

/// A process that is a part of the fleet. It ends when this is dropped.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    child: Child,
    orders: ChildStdin,
    answers: ChildStdout,
}

impl Part {
    /// Starts a part, and tells it its first words.
    ///
    /// # Errors
    /// When the process does not start, or ends at once.
    pub async fn start(name: &'static str, begin: &impl Serialize) -> Result<Self, PartFailed> {
        let failed = |source| PartFailed { name, source };
        let mut child = std::env::current_exe()
            .and_then(|program| {
                Command::new(program)
                    .args(["part", name])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()
            })
            .map_err(failed)?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::Error::other("it has no pipes")));
        };
        let mut part = Self { name, child, orders, answers };
        part.tell(begin).await?;
        Ok(part)
    }

    /// Its process.
    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Tells it something that it does not answer.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn tell(&mut self, order: &impl Serialize) -> Result<(), PartFailed> {
        let told = async {
            self.orders.write_all(&encode(order)?).await?;
            self.orders.flush().await
        };
        told.await.map_err(|source| PartFailed { name: self.name, source })
    }

    /// Hears its answer.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn hear<A: DeserializeOwned>(&mut self) -> Result<A, PartFailed> {
        let heard = async {
            let mut length = [0; 4];
            self.answers.read_exact(&mut length).await?;
            let mut bytes = vec![0; bounded(length)?];
            self.answers.read_exact(&mut bytes).await?;
            decode(&bytes)
        };
        heard.await.map_err(|source| PartFailed { name: self.name, source })
    }

    /// Tells it something, and hears the answer.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn ask<A: DeserializeOwned>(&mut self, order: &impl Serialize) -> Result<A, PartFailed> {
        self.tell(order).await?;
        self.hear().await
    }

    /// Ends it: its standard input ends, and it goes.
    pub async fn end(self) {
        let Self { mut child, orders, answers, .. } = self;
        drop((orders, answers));
        // What does not go by itself is killed when it is dropped.
        _ = tokio::time::timeout(std::time::Duration::from_secs(10), child.wait()).await;
    }
}
