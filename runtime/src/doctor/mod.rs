//! What this host lacks to run containers, and what to type for it.
//!
//! Facts are gathered first and judged then: what gathers looks at the host, what judges is pure, so that the judging
//! of both systems is tested on either.

mod advice;
mod facts;
mod gather;
mod judge;
mod report;

use std::path::PathBuf;

pub use report::{Check, Report, State};

/// The containerd shim, by the name under which containerd looks for it.
const SHIM: &str = "containerd-shim-skep-v2";
/// How containerd's configuration names it.
const RUNTIME: &str = "io.containerd.skep.v2";
/// Below this anchor of pf are those of the sandboxes; the main ruleset refers to it.
const ANCHOR: &str = "skep";

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Patient {
    /// The configuration, instead of the one that shims of this containerd would read.
    pub config: Option<PathBuf>,
    /// containerd's socket, instead of `$CONTAINERD_ADDRESS` or the usual one.
    pub containerd: Option<PathBuf>,
}

/// Looks at this host. Runs programs and reads files, each within a limit of time; changes nothing.
pub fn examine(patient: &Patient) -> Report {
    judge::judge(&gather::gather(patient))
}
