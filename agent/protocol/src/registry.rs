//! Stdio streams that the host has opened and no process has claimed yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::stdio::StdioStream;

/// Streams that wait for their process at once; one more drops the oldest.
const MAX_UNCLAIMED: usize = 256;

/// Where the agent finds the streams that a call names by token. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StdioRegistry(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Oldest first.
    streams: Mutex<VecDeque<(u64, StdioStream)>>,
    arrived: Notify,
}

/// Why a token gave no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Token 0 means that the process has no such stream: there is nothing to claim.
    #[error("stdio token 0 names no stream")]
    NoToken,
    /// The stream did not arrive in time: the host did not open it, has dropped it, or lost its session.
    #[error("no stdio stream with token {token} arrived within {waited:?}")]
    Timeout {
        /// The token asked for.
        token: u64,
        /// How long.
        waited: Duration,
    },
}

impl StdioRegistry {
    /// A registry without streams.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the stream of `token`, waiting for it: a call may overtake the streams opened before it.
    pub async fn claim(&self, token: u64, timeout: Duration) -> Result<StdioStream, ClaimError> {
        if token == 0 {
            return Err(ClaimError::NoToken);
        }
        let arrival = async {
            loop {
                let mut arrived = std::pin::pin!(self.0.arrived.notified());
                // From here on no arrival is missed.
                arrived.as_mut().enable();
                if let Some(stream) = self.take(token) {
                    return stream;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(timeout, arrival)
            .await
            .map_err(|_| ClaimError::Timeout { token, waited: timeout })
    }

    fn take(&self, token: u64) -> Option<StdioStream> {
        let mut streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let index = streams.iter().position(|(held, _)| *held == token)?;
        streams.remove(index).map(|(_, stream)| stream)
    }

    pub(crate) fn offer(&self, token: u64, stream: StdioStream) {
        let mut streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        // A token drawn twice can only be a mistake of the host: the newer stream is the one it holds.
        streams.retain(|(held, _)| *held != token);
        if streams.len() == MAX_UNCLAIMED {
            streams.pop_front();
        }
        streams.push_back((token, stream));
        drop(streams);
        self.0.arrived.notify_waiters();
    }

    /// Drops what an ended session left unclaimed.
    pub(crate) fn clear(&self) {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mux;
    use tokio::sync::mpsc;

    /// So many streams of a mux, guest side.
    async fn streams(count: usize) -> (mux::Opener, Vec<StdioStream>) {
        let (a, b) = tokio::io::duplex(1 << 16);
        let (opener, driver) = mux::host(a, std::future::pending());
        tokio::spawn(driver);
        let (accepted, mut arriving) = mpsc::unbounded_channel();
        tokio::spawn(mux::guest(b, move |stream| drop(accepted.send(stream))));
        let mut taken = Vec::new();
        for _ in 0..count {
            let (mut stream, _permit) = opener.open().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await.unwrap();
            taken.push(StdioStream::new(arriving.recv().await.unwrap(), None));
        }
        (opener, taken)
    }

    #[tokio::test(start_paused = true)]
    async fn claims_by_token_whenever_the_stream_comes() {
        let registry = StdioRegistry::new();
        let (_opener, mut made) = streams(2).await;
        let wait = Duration::from_secs(5);
        registry.offer(7, made.pop().unwrap());
        registry.claim(7, wait).await.unwrap();
        assert_eq!(
            registry.claim(7, wait).await.unwrap_err(),
            ClaimError::Timeout { token: 7, waited: wait }
        );
        assert_eq!(registry.claim(0, wait).await.unwrap_err(), ClaimError::NoToken);

        let waiting = tokio::spawn({
            let registry = registry.clone();
            async move { registry.claim(8, wait).await }
        });
        tokio::task::yield_now().await;
        registry.offer(8, made.pop().unwrap());
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn holds_a_bounded_number_and_forgets_on_clear() {
        let registry = StdioRegistry::new();
        let (_opener, made) = streams(MAX_UNCLAIMED + 1).await;
        for (token, stream) in (1..).zip(made) {
            registry.offer(token, stream);
        }
        assert!(registry.take(1).is_none(), "the oldest gave way");
        assert!(registry.take(2).is_some());
        registry.clear();
        assert!(registry.take(3).is_none());
    }
}
