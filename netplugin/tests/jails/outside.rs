//! What is around the machine: other nodes, and a stack outside.

use std::process::Command;

use super::{Jail, sh};

/// Another node of a stretched network: a jail behind a wire, with a plain VXLAN link of the kernel's. In a jail no link can
/// be made, but one that was made outside works in the jail it was moved to.
pub struct Node {
    pub jail: Jail,
    here: (String, String),
    there: String,
}

impl Node {
    /// A wire between the machine, which gets the address `here`, and a jail, which gets `there`.
    pub fn new(here: &str, there: &str) -> Self {
        let jail = Jail::new();
        let (family, len) = if here.contains(':') { ("inet6", 64) } else { ("inet", 24) };
        let a = sh("ifconfig epair create").trim().to_owned();
        let b = a.strip_suffix('a').map(|stem| format!("{stem}b")).unwrap();
        sh(&format!(
            "ifconfig {a} vnet {name}; jexec {name} ifconfig {a} {family} {there}/{len} up; ifconfig {b} {family} {here}/{len} up; \
             [ {family} = inet ] || {{ jexec {name} ifconfig {a} inet6 -ifdisabled no_dad; ifconfig {b} inet6 -ifdisabled no_dad; }}",
            name = jail.name
        ));
        Self { jail, here: (b, here.to_owned()), there: there.to_owned() }
    }

    /// The node's link to the machine, with an address on the network.
    pub fn link(&self, vni: u32, address: &str) {
        let family = if address.contains(':') { "inet6" } else { "inet" };
        sh(&format!(
            "x=$(ifconfig vxlan create vxlanid {vni} vxlanlocal {there} vxlanremote {here}); ifconfig $x vnet {name}; \
             jexec {name} ifconfig $x {family} {address} up; jexec {name} ifconfig $x name far >/dev/null",
            there = self.there,
            here = self.here.1,
            name = self.jail.name,
        ));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A link comes back to the machine, which alone can remove it, when its jail ends.
        self.jail.end();
        let _ = Command::new("/sbin/ifconfig").args(["far", "destroy"]).output();
        let _ = Command::new("/sbin/ifconfig").args([&self.here.0, "destroy"]).output();
    }
}

/// A stack outside: 192.0.2.2, the machine has 192.0.2.1.
pub fn outside() -> (Jail, Wire) {
    let jail = Jail::new();
    let (_, here) = jail.wire(None, "192.0.2.2/24", "192.0.2.1/24");
    jail.sh("ifconfig lo0 alias 203.0.113.5/32; ifconfig lo0 alias 203.0.113.77/32; ifconfig lo0 alias 169.254.169.254/32");
    sh("route -q add 203.0.113.0/24 192.0.2.2; route -q add 169.254.0.0/16 192.0.2.2");
    (jail, Wire(here))
}

/// The machine's end of a wire: goes with the value.
pub struct Wire(String);

impl Drop for Wire {
    fn drop(&mut self) {
        sh(&format!(
            "route -q delete 203.0.113.0/24 || true; route -q delete 169.254.0.0/16 || true; ifconfig {} destroy || true",
            self.0
        ));
    }
}
