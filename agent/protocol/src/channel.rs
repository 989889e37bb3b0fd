//! Byte channels between host and guest, reliable and in order.

use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// What a mux runs over.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Bytes for T {}

pub(crate) type ByteChannel = Pin<Box<dyn Bytes>>;

/// An established channel of a host.
pub(crate) struct Channel {
    pub(crate) bytes: ByteChannel,
    /// Tells the sessions of one guest apart.
    pub(crate) session: u32,
}

impl Channel {
    pub(crate) fn plain(io: impl Bytes + 'static) -> Self {
        Self { bytes: Box::pin(io), session: draw_session() }
    }
}

/// A number that nobody who does not see the channel can guess: the keys of the hasher come from the system's
/// random device. Never 0.
pub(crate) fn draw_session() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().hash_one(std::process::id()).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d]).max(1)
}
