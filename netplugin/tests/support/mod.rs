//! Hosts, containers and wires made of network namespaces, and packets to send between them.
//!
//! A namespace here has no name and no file: it is a descriptor of this process, gone with it. The machine's own
//! namespace is never touched, so tests run side by side.

// No test uses all of it.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]
#![allow(clippy::cast_possible_truncation, reason = "lengths of frames made here")]
#![allow(
    clippy::doc_markdown,
    clippy::cast_possible_wrap,
    clippy::needless_pass_by_value,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use
)]

mod conf;
pub mod flow;
pub mod frames;
mod host;
mod ns;
mod traffic;

use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

pub use conf::{merge, open_policy, policy};
pub use host::{Container, Host};
pub use ns::Ns;
pub use traffic::{asked, echoes};

/// How long may take what must happen. A machine can be slow, and waiting ends with what is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long we listen for a packet that should not arrive. A test shows first that such a packet would.
pub const SILENCE: Duration = Duration::from_millis(300);
/// How long we wait for an answer before we ask again: a network that has just come up may lose the first question.
pub const AGAIN: Duration = Duration::from_secs(1);

/// Waits for something that becomes so in time; whether it did.
pub fn comes(is_so: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Tests of this kind make network namespaces, which takes root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
    };
}

/// A program that ends with the test.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
