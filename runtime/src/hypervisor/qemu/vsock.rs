//! vhost-device-vsock: a vsock for the guest without a kernel module of the host.
//!
//! A second process serves the device by vhost-user and ends in a unix socket on which `CONNECT <port>` reaches the
//! guest. It ends by itself when QEMU closes its connection; if not, it is killed with the sandbox.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use skep_protocol::Endpoint;

use super::output::log;
use crate::hypervisor::log::Tail;
use crate::hypervisor::{HypervisorError, Place, Vsock, find_program};
use crate::journal::{EntryId, Journal};
use crate::os::ProcessIdentity;

/// How long the backend may take to listen.
const START: Duration = Duration::from_secs(10);
/// How often that is looked at: nothing tells of it.
const LOOK: Duration = Duration::from_millis(2);

/// A backend that runs.
#[derive(Debug)]
pub(super) struct Backend {
    /// Where QEMU connects to.
    pub(super) socket: PathBuf,
    /// Where the host connects to.
    pub(super) endpoint: Endpoint,
}

/// Starts the backend and returns when it listens.
pub(super) async fn start(binary: &Path, vsock: Vsock, place: &Place) -> Result<Backend, HypervisorError> {
    let binary = find_program(binary).ok_or_else(|| HypervisorError::NoProgram {
        program: binary.display().to_string(),
        hint: "install it with `cargo install vhost-device-vsock`",
        key: "qemu.vhost_device_vsock",
    })?;
    let socket = place.dir.join("vhost.sock");
    let uds = place.dir.join("vsock.sock");
    let mut command = Command::new(&binary);
    command.arg("--guest-cid").arg(vsock.cid.to_string());
    command.arg("--socket").arg(&socket).arg("--uds-path").arg(&uds);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(cgroup) = &place.cgroup {
        cgroup.enter(&mut command)?;
    }
    let (mut child, process, entry) = place.journal.spawn("vsock", command, &[])?;
    let said = Tail::default();
    // Its end is seen by the end of its pipe, and it is reaped whatever comes.
    let reading = log(child.stderr.take(), place.dir.join("vsock.log"), &said);
    tokio::spawn(reap(child, process, Arc::clone(&place.journal), entry));
    let mut reading = reading?;

    let listens = async {
        while !socket.exists() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let failed = |reason: String| HypervisorError::File {
        action: "listen on",
        path: socket.clone(),
        source: std::io::Error::other(reason),
    };
    tokio::select! {
        () = listens => {}
        _ = &mut reading => return Err(failed(format!("{} ended: {}", binary.display(), said.text()))),
        () = tokio::time::sleep(START) => {
            let waited = START.as_secs();
            return Err(failed(format!("{} does not within {waited} s: {}", binary.display(), said.text())));
        }
    }
    Ok(Backend { endpoint: Endpoint::Vsock { uds, port: vsock.port }, socket })
}

async fn reap(mut child: Child, process: ProcessIdentity, journal: Arc<Journal>, entry: EntryId) {
    let exited = match process.watch() {
        Ok(Some(watch)) => watch.exited().await,
        Ok(None) => Ok(()),
        Err(e) => Err(e),
    };
    match exited {
        Ok(()) => {
            let _ = child.wait();
            if let Err(e) = journal.strike(entry) {
                tracing::warn!("{e}");
            }
        }
        // It stays in the journal.
        Err(e) => tracing::warn!("{e}"),
    }
}
