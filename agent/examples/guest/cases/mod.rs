//! What a user would notice, one boot each.

mod container;
mod guest;
mod process;

use std::future::Future;
use std::pin::Pin;

use anyhow::ensure;

use crate::vm::{Outcome, Vm};

type Case = for<'a> fn(&'a Vm) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

pub(crate) const ALL: &[(&str, Case)] = &[
    ("hello", |vm| Box::pin(container::hello(vm))),
    ("spec", |vm| Box::pin(container::whole_spec(vm))),
    ("faults", |vm| Box::pin(container::faults(vm))),
    ("exec", |vm| Box::pin(process::exec(vm))),
    ("stdio", |vm| Box::pin(process::stdio(vm))),
    ("terminal", |vm| Box::pin(process::terminal(vm))),
    ("signals", |vm| Box::pin(process::signals(vm))),
    ("overlay", |vm| Box::pin(container::overlay(vm))),
    ("pod", |vm| Box::pin(container::pod(vm))),
    ("seccomp", |vm| Box::pin(container::seccomp(vm))),
    ("devices", |vm| Box::pin(container::devices(vm))),
    ("many", |vm| Box::pin(guest::many(vm))),
    ("clean", |vm| Box::pin(guest::clean(vm))),
    ("hostile", |vm| Box::pin(guest::hostile(vm))),
    ("reconnect", |vm| Box::pin(guest::reconnect(vm))),
    ("userns", |vm| Box::pin(container::userns(vm))),
];

/// What the kernel is told, and what a guest that then ends itself says before.
pub(crate) const FATAL: &[(&str, &str)] = &[
    ("skep.nonsense=1", "skep-agent: fatal: kernel command line: unknown parameter \"skep.nonsense\""),
    ("rdinit=/nothing", "Kernel panic"),
];

fn expect(outcome: &Outcome, status: u32, stdout: &str) -> anyhow::Result<()> {
    ensure!(
        outcome.status == status && outcome.stdout == stdout,
        "not status {status} and {stdout:?} but {outcome:?}"
    );
    Ok(())
}
