//! vhost-device-vsock: a vsock for the guest without a kernel module of the host.
//!
//! A second process serves the device by vhost-user and ends in a unix socket on which `CONNECT <port>` reaches the
//! guest. It ends by itself when QEMU closes its connection.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use skep_protocol::Endpoint;

use crate::hypervisor::{HypervisorError, Place, Vsock, find_program};

/// How long the backend may take to listen.
const START: Duration = Duration::from_secs(10);

/// A backend that runs.
#[derive(Debug)]
pub(super) struct Backend {
    /// Where QEMU connects to.
    pub(super) backend_socket: PathBuf,
    /// Where the host connects to.
    pub(super) endpoint: Endpoint,
}

/// Starts the backend and returns when it listens.
pub(super) fn start(binary: &Path, vsock: Vsock, place: &Place) -> Result<Backend, HypervisorError> {
    let binary = find_program(binary).ok_or_else(|| HypervisorError::NoProgram {
        program: binary.display().to_string(),
        hint: "install it with `cargo install vhost-device-vsock`",
        key: "qemu.vhost_device_vsock",
    })?;
    let backend_socket = place.dir.join("vhost.sock");
    let uds = place.dir.join("vsock.sock");
    let log_path = place.dir.join("vsock.log");
    let file = |action, path: &Path| {
        let path = path.to_owned();
        move |source| HypervisorError::File { action, path, source }
    };
    let log = std::fs::File::create_new(&log_path).map_err(file("create", &log_path))?;
    let mut command = Command::new(binary);
    command.arg("--guest-cid").arg(vsock.cid.to_string());
    command.arg("--socket").arg(&backend_socket).arg("--uds-path").arg(&uds);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let (mut child, ..) = place.journal.spawn("vsock", command, &[])?;
    let start = Instant::now();
    while !backend_socket.exists() {
        // There is nothing to be told by: the socket appears, or the process ends.
        if let Some(status) = child.try_wait().map_err(file("wait for the process of", &backend_socket))? {
            let message = std::fs::read_to_string(&log_path).unwrap_or_default();
            let source = std::io::Error::other(format!("the backend ended ({status}): {}", message.trim()));
            return Err(HypervisorError::File { action: "listen on", path: backend_socket, source });
        }
        if start.elapsed() > START {
            let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(HypervisorError::File { action: "listen on", path: backend_socket, source });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Reaped when it ends, which is when QEMU does.
    tokio::task::spawn_blocking(move || child.wait());
    Ok(Backend { backend_socket, endpoint: Endpoint::Vsock { uds, port: vsock.port } })
}
