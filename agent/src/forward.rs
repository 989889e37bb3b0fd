//! Connections that the host makes to ports of the guest's loopback, for whoever forwards ports to a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use skep_protocol::api::ForwardPortRequest;
use skep_protocol::{StdioRegistry, StdioStream};
use tokio::net::TcpStream;

use crate::error::Refusal;

/// A call may overtake the stream it names, but not by much.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);
/// A connection within the guest is made or refused at once, unless its listener's queue is full.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Connects the stream to the port; bytes are copied from then on.
pub(crate) async fn connect(registry: &StdioRegistry, request: &ForwardPortRequest) -> Result<(), Refusal> {
    let port = u16::try_from(request.port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Refusal::invalid(format!("port {}: not 1 to 65535", request.port)))?;
    let stream = registry.claim(request.stream, CLAIM_LIMIT).await;
    let stream = stream.map_err(|e| Refusal::invalid(format!("stream: {e}")))?;
    let socket = tokio::time::timeout(CONNECT_LIMIT, dial(port)).await;
    let socket = socket
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|e| Refusal::precondition(format!("port {port} of the pod's loopback: {e}")))?;
    tokio::spawn(copy(stream, socket, port));
    Ok(())
}

/// IPv4 first; whoever listens has chosen one.
async fn dial(port: u16) -> std::io::Result<TcpStream> {
    match TcpStream::connect((IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await {
        Err(error) => TcpStream::connect((IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await.map_err(|_| error),
        connected => connected,
    }
}

/// Until both directions have ended.
async fn copy(mut stream: StdioStream, mut socket: TcpStream, port: u16) {
    if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut socket).await {
        tracing::debug!("a connection to port {port} broke: {error}");
    }
}
