//! Putting frames into the way of those that an interface receives, behind its filter.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    Insn, NAME, NGM_CONNECT, NGM_GENERIC_COOKIE, Netgraph, PATH, WHOLE, address, field, node, send_to,
};
use crate::error::Error;
use crate::sys::{kernel, socket};

// netgraph/ng_socket.h
const NG_DATA: i32 = 1;
const HOOK: &str = "out";

/// Frames sent by it come to the bridge of an interface as if that had just received them from whoever is behind it. Ends
/// with the value, also when the process is killed: the node is the socket's.
#[derive(Debug)]
pub struct Injector {
    data: OwnedFd,
    // The node, which goes with it.
    _control: Netgraph,
}

fn named(
    call: unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int,
    socket: &OwnedFd,
    name: &str,
) -> io::Result<()> {
    let address = address(name)?;
    // SAFETY: bind(2) and connect(2) read as many bytes as told of an address that lives until they return.
    let result =
        unsafe { call(socket.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Netgraph {
    /// Gets between an interface's filter ([`Netgraph::filter`]) and its bridge.
    pub fn injector(interface: &str) -> Result<Injector, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let failed = |error| kernel(format!("send frames as {interface} receives them"), error);
        let control = Self::open()?;
        let own = format!("skep{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        named(libc::bind, &control.socket, &own).map_err(failed)?;
        let data = socket(libc::AF_NETGRAPH, libc::SOCK_DGRAM, NG_DATA).map_err(failed)?;
        named(libc::connect, &data, &format!("{own}:")).map_err(failed)?;
        let filter = format!("{}:lower", node(interface));
        let connect = [field(&filter, PATH), field(HOOK, NAME), field(&own, NAME)].concat();
        control.send(".", NGM_GENERIC_COOKIE, NGM_CONNECT, &connect).map_err(failed)?;
        let all = [Insn { code: 0x06, jt: 0, jf: 0, k: WHOLE }];
        control.load(&filter, &own, "upper", &all).map_err(failed)?;
        Ok(Injector { data, _control: control })
    }
}

impl Injector {
    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send_to(&self.data, HOOK, frame)
    }
}
