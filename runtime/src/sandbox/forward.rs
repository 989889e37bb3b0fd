//! Connections to the pod's loopback, as whoever forwards ports to a pod makes them: Kubernetes' container runtimes enter
//! the pod's network namespace and dial `localhost`. The pod's processes are behind the VM, so such connections are
//! accepted here and carried on to the guest's loopback.

use std::sync::Arc;

use skep_protocol::{Session, api};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::network::Network;

/// Connections of one sandbox at a time; each costs two buffers and a stream of the session.
const MOST: usize = 64;

/// Accepts until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Forwarder {
    /// While it lives, connections arrive.
    _steering: Box<dyn std::any::Any + Send + Sync>,
    tasks: Vec<JoinHandle<()>>,
}

impl Forwarder {
    /// Begins, if the sandbox lives in a namespace that somebody else may enter. Without it a pod works, but for
    /// forwarded ports: so failing is told and no more.
    pub(super) fn start(network: &Network, session: &Session) -> Option<Self> {
        let loopback = match network.loopback() {
            Ok(loopback) => loopback?,
            Err(error) => {
                tracing::warn!("ports of this pod can't be forwarded: {error}");
                return None;
            }
        };
        let room = Arc::new(Semaphore::new(MOST));
        let mut tasks = Vec::new();
        for listener in loopback.listeners {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    tasks.push(tokio::spawn(accept(listener, session.clone(), Arc::clone(&room))));
                }
                Err(error) => tracing::warn!("ports of this pod can't be forwarded: {error}"),
            }
        }
        Some(Self { _steering: loopback.steering, tasks })
    }

    /// Accepts no more.
    pub(super) fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener, session: Session, room: Arc<Semaphore>) {
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let session = session.clone();
                tokio::spawn(async move {
                    carry(socket, &session).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("forwarding ports: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Both ways until both have ended, or the session has.
async fn carry(mut socket: TcpStream, session: &Session) {
    // Nobody listens at the port that was dialled: the socket has the listener's, and keeps the dialled one as its own.
    let port = match socket.local_addr() {
        Ok(address) => address.port(),
        Err(error) => return tracing::debug!("forwarding a port: {error}"),
    };
    let token = session.draw_token();
    let opened = async {
        let stream = session.open_stdio(token).await.map_err(|e| e.to_string())?;
        let request = api::ForwardPortRequest {
            port: port.into(),
            stream: token,
            ..api::ForwardPortRequest::default()
        };
        session.agent().forward_port(&request).await.map_err(|e| e.to_string())?;
        Ok::<_, String>(stream)
    };
    let mut stream = match opened.await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::info!(port, "forwarding: {error}");
            // A reset and not an end: whoever dialled is to see a failure.
            let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO));
            return;
        }
    };
    if let Err(error) = tokio::io::copy_bidirectional(&mut socket, &mut stream).await {
        tracing::debug!(port, "forwarding: {error}");
    }
}
