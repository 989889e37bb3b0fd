//! Hosts and sandboxes made of vnet jails, and packets to send between them.
//!
//! The machine's own network stack is the host of most tests; where several hosts are needed, they are vnet jails with
//! sandboxes of their own inside. Everything here takes root.

// No test uses all of it.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]
#![allow(clippy::must_use_candidate, clippy::needless_pass_by_value)]

mod census;
#[path = "../support/conf.rs"]
mod conf;
pub mod dhcp;
pub mod dhcp_server;
pub mod frames;
mod host;
mod jail;
mod outside;
mod traffic;
pub mod uplink;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use census::{ANCHORS, evaluations};
pub use conf::{merge, open_policy, policy};
pub use host::{Container, Host, Running};
pub use jail::Jail;
pub use outside::{Node, Wire, outside};
pub use traffic::{Held, blocked_from_here, reaches_from_here};

/// How long a packet that should arrive may take. Generous: an emulated machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How long we listen for a packet that should not arrive.
pub const SILENCE: Duration = Duration::from_millis(1500);

/// How often a state is looked at that is waited for, and how long at most: nothing takes that long unless it never comes.
const LOOK: Duration = Duration::from_millis(500);
const AT_MOST: Duration = Duration::from_secs(600);

/// Waits for `holds`, which says what is so instead.
pub fn until(holds: impl Fn() -> Result<(), String>) {
    let begin = Instant::now();
    while let Err(instead) = holds() {
        assert!(begin.elapsed() < AT_MOST, "after {} s: {instead}", AT_MOST.as_secs());
        std::thread::sleep(LOOK);
    }
}

/// Where the plugin is: told by the environment, else beside the test.
pub fn plugin() -> PathBuf {
    std::env::var_os("SKEP_CNI")
        .map_or_else(|| std::env::current_exe().unwrap().with_file_name("skep-cni"), PathBuf::from)
}

/// The machine's network stack is one: tests take turns.
pub fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a command; what it prints.
pub fn run(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn sh(script: &str) -> String {
    run("/bin/sh", &["-ec", script])
}
