//! Figures on FreeBSD. Nothing is asserted: run by `cargo xtask freebsd test --only cni-bench`.
#![cfg(target_os = "freebsd")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark"
)]

mod attach;
mod flows;
#[path = "../jails/mod.rs"]
mod jails;
mod lists;
mod paths;

use std::time::{Duration, Instant};

use jails::sh;

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

pub(crate) fn ratio(slow: Duration, fast: Duration) -> f64 {
    slow.as_secs_f64() / fast.as_secs_f64()
}

/// devd(8) is stopped: for each interface that comes it runs programs, which are none of what is measured. FreeBSD 15.1 does
/// not always survive a list of all neighbours (`lltable_sysctl_dumparp`) while interfaces come, and such a program may ask
/// for one.
pub(crate) struct Quiet;

impl Quiet {
    pub(crate) fn new() -> Self {
        sh("service devd onestop >/dev/null 2>&1 || true; killall -q dhclient || true");
        Self
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        sh("service devd onestart >/dev/null 2>&1 || true");
    }
}

/// The anchor of a sandbox's filter: another's may still be there, known to flows that have ended just now.
pub(crate) fn anchor_of(id: &str) -> String {
    sh(&format!("pfctl -q -v -a skep -s Anchors | awk '/port/ && /{id}$/ {{print $1}}'"))
}
