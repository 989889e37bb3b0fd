//! What a guest can make its host hold.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use skep_protocol::testing::session_over;
use tokio::io::AsyncWriteExt;

/// Counts what is allocated at present.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller got `pointer` from `alloc` above, which got it from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Frames of one byte for streams that nobody reads: their bytes count, not their number.
#[tokio::test]
async fn tiny_frames_cost_what_their_bytes_cost() {
    const STREAMS: u32 = 4;
    const FRAMES: usize = 100_000;
    let (host, mut guest) = tokio::io::duplex(1 << 16);
    let session = session_over(host).await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        unread.push(session.open_stdio(session.draw_token()).await.unwrap());
    }
    let before = HELD.load(Ordering::Relaxed);
    let mut burst = Vec::new();
    for stream in 0..STREAMS {
        // Data, acknowledging, one byte.
        burst.extend_from_slice(&[0, 0, 0, 2]);
        // Stream 1 carries the calls.
        burst.extend_from_slice(&(3 + 2 * stream).to_be_bytes());
        burst.extend_from_slice(&[0, 0, 0, 1, b'x']);
    }
    for _ in 0..FRAMES {
        guest.write_all(&burst).await.unwrap();
    }
    let held = HELD.load(Ordering::Relaxed) - before;
    assert!(
        held < 4 * STREAMS as usize * FRAMES,
        "{held} bytes held for {FRAMES} bytes in each of {STREAMS}"
    );
    drop(unread);
}
