//! Bytes in, bytes out: one socket with what was read and not understood yet, and what is to be written.
//!
//! Packets to write are kept as they are and written many at a time; shared ones are never copied. An idle link holds
//! no buffers. Leaves to others what the bytes mean.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Read at once, at most.
const READ_BYTES: usize = 16 * 1024;
/// Packets written in one call, at most.
const WRITE_PACKETS: usize = 64;
/// With this much to write, nothing more is taken on.
const OUTPUT_BYTES: usize = 64 * 1024;
pub(crate) const OUTPUT_PACKETS: usize = WRITE_PACKETS;
/// How long a closed connection is kept so that the last words arrive, and how much is read meanwhile: closing a
/// socket with unread input discards what was sent.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// A transport: TCP, or TLS over it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A socket and its two buffers.
pub(crate) struct Link<S> {
    stream: S,
    input: BytesMut,
    output: VecDeque<Bytes>,
    output_bytes: usize,
    needs_flush: bool,
    stalled: Option<Instant>,
}

impl<S: Stream> Link<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: VecDeque::new(),
            output_bytes: 0,
            needs_flush: false,
            stalled: None,
        }
    }

    /// Takes what has been read; give back what is left of it.
    pub(crate) fn take_input(&mut self) -> BytesMut {
        std::mem::take(&mut self.input)
    }

    pub(crate) fn give_back_input(&mut self, input: BytesMut) {
        if !input.is_empty() {
            self.input = input;
        }
    }

    pub(crate) fn write(&mut self, packet: Bytes) {
        self.output_bytes += packet.len();
        self.output.push_back(packet);
    }

    /// Whether there is little enough to write that more may be taken on.
    pub(crate) fn has_room(&self) -> bool {
        self.output_bytes < OUTPUT_BYTES && self.output.len() < OUTPUT_PACKETS
    }

    /// Since when the other side has taken nothing of what there is for it.
    pub(crate) const fn stalled(&self) -> Option<Instant> {
        self.stalled
    }

    /// Writes what there is. Answers whether to come again: there is room again, or more to write, and the socket has to be
    /// asked again to be heard from again.
    pub(crate) fn poll_output(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.output_bytes == 0 && !self.needs_flush {
            return Ok(false);
        }
        let had_room = self.has_room();
        match self.poll_write(cx) {
            Poll::Ready(all) => {
                let all = all?;
                self.stalled = (!all).then(Instant::now);
                Ok(!all || (!had_room && self.has_room()))
            }
            Poll::Pending => {
                self.stalled.get_or_insert_with(Instant::now);
                Ok(false)
            }
        }
    }

    /// Reads some bytes; ready with 0 at the end of the stream.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [MaybeUninit::uninit(); READ_BYTES];
        let mut read = ReadBuf::uninit(&mut bytes);
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        self.input.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Writes; ready when there was progress, and with `true` when nothing is left.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut progress = false;
        while self.output_bytes > 0 {
            let written = {
                let mut slices = [IoSlice::new(&[]); WRITE_PACKETS];
                let mut count = 0;
                for (slice, packet) in slices.iter_mut().zip(&self.output) {
                    *slice = IoSlice::new(packet);
                    count += 1;
                }
                match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => written,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if progress => return Poll::Ready(Ok(false)),
                    Poll::Pending => return Poll::Pending,
                }
            };
            self.written(written);
            progress = true;
            self.needs_flush = true;
        }
        if self.needs_flush {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending if progress => return Poll::Ready(Ok(false)),
                Poll::Pending => return Poll::Pending,
            }
            self.needs_flush = false;
        }
        if self.output.capacity() > WRITE_PACKETS {
            self.output = VecDeque::new();
        }
        Poll::Ready(Ok(true))
    }

    /// Writes what is left and closes, within `timeout`.
    pub(crate) async fn finish(mut self, timeout: Duration) {
        let goodbye = async {
            while !poll_fn(|cx| self.poll_write(cx)).await? {}
            poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx)).await
        };
        if matches!(tokio::time::timeout(timeout, goodbye).await, Ok(Ok(()))) {
            let linger = async {
                let mut left = LINGER_BYTES;
                while left > 0 {
                    self.input.clear();
                    match poll_fn(|cx| self.poll_read(cx)).await {
                        Ok(0) | Err(_) => return,
                        Ok(read) => left = left.saturating_sub(read),
                    }
                }
            };
            // Long enough is long enough: the client had its chance to read.
            let _ = tokio::time::timeout(LINGER, linger).await;
        }
    }

    fn written(&mut self, mut bytes: usize) {
        self.output_bytes -= bytes;
        while bytes > 0 {
            let Some(front) = self.output.front_mut() else { return };
            if front.len() > bytes {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.output.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order_through_a_narrow_pipe() {
        let (ours, mut theirs) = duplex(7);
        let mut link = Link::new(ours);
        let mut expected = Vec::new();
        for n in 0..200u8 {
            let packet = vec![n; usize::from(n) % 40 + 1];
            expected.extend_from_slice(&packet);
            link.write(packet.into());
        }
        assert_eq!(link.output_bytes, expected.len());
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.unwrap();
            all
        });
        link.finish(Duration::from_secs(10)).await;
        assert_eq!(read.await.unwrap(), expected);
    }
}
