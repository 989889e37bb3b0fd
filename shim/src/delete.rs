//! `delete`: cleans up after a shim that is gone or does not answer, from what is on disk alone.

use std::{
    io::Write as _,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use protobuf::{Message as _, MessageField};
use skep::{
    config::Config,
    container::KILLED,
    os::{ProcessIdentity, Signal},
    sandbox,
};
use skep_containerd_api::task::DeleteResponse;

use crate::{
    bundle::Bundle,
    cli::Args,
    convert::{chain, timestamp},
    poststop::Notes,
    socket,
    start::{bundle, load_config},
};

/// How long a shim that was asked to end may take; containerd gives the whole of `delete` 5 s.
const GRACE: Duration = Duration::from_secs(2);
/// How long a killed one may take to go.
const KILL: Duration = Duration::from_secs(1);

/// Does it, and prints containerd's answer. Problems on standard error become warnings in containerd's log.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let bundle = bundle(args)?;
    if let Err(error) = clean(args, &bundle) {
        eprintln!("{}", chain(&error));
    }
    if let Err(error) = finish_hooks(bundle) {
        eprintln!("{}", chain(&error));
    }
    // Whatever was left: the task is over.
    let answer = DeleteResponse {
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    std::io::stdout().write_all(&answer.write_to_bytes()?).context("standard output")
}

/// Runs the hooks that the shim did not live to run.
fn finish_hooks(bundle: Bundle) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for noted in Notes::in_bundle(bundle).take() {
        match noted {
            Ok(hooks) => runtime.block_on(hooks.poststop()),
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}

fn clean(args: &Args, bundle: &Bundle) -> anyhow::Result<()> {
    // A bundle may be half made or half gone: then the id says what there is to know.
    let state = bundle.state().unwrap_or_else(|error| {
        eprintln!("{error}");
        None
    });
    let config = load_config(&state.as_ref().map(|state| state.config.clone()).unwrap_or_default())?;
    let group = match &state {
        Some(state) => state.group.clone(),
        None => bundle.group(&args.id).unwrap_or_else(|_| args.id.clone()),
    };
    let owners = owners(&config, &args.namespace, &group, state.as_ref().and_then(|state| state.server));
    if group != args.id && owners.iter().any(|owner| owner.is_alive().unwrap_or(false)) {
        // One container of a pod whose shim lives: the shim has it, and the others.
        return Ok(());
    }
    for owner in owners {
        end(&owner)?;
    }
    let path =
        state.map_or_else(|| socket::path(&config.state_dir, &args.namespace, &group), |state| state.socket);
    let removed = socket::remove(&path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(sandbox::destroy_by_id(&config, &args.namespace, &group))?;
    Ok(removed?)
}

/// The processes that look after the sandbox: as `start` noted it, and as the sandbox itself says.
fn owners(
    config: &Config,
    namespace: &str,
    group: &str,
    server: Option<ProcessIdentity>,
) -> Vec<ProcessIdentity> {
    let listed = sandbox::list(config).unwrap_or_else(|error| {
        eprintln!("{error}");
        Vec::new()
    });
    let records = listed.into_iter().filter_map(|listed| listed.record.ok().flatten());
    let mut owners: Vec<_> = records
        .filter(|record| record.namespace == namespace && record.id == group)
        .map(|record| record.owner)
        .chain(server)
        .collect();
    owners.dedup();
    owners
}

/// A shim that still can undoes its sandbox by itself.
fn end(owner: &ProcessIdentity) -> anyhow::Result<()> {
    if !owner.signal(Signal::TERM)? {
        return Ok(());
    }
    let deadline = std::time::Instant::now() + GRACE;
    while owner.is_alive()? {
        if std::time::Instant::now() > deadline {
            return Ok(owner.kill_and_wait(KILL)?);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
