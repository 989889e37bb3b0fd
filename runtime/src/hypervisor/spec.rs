//! What a VM is made of: plain data, the same for every driver.

use std::fmt;
use std::path::PathBuf;

use crate::config::{Memory, Vcpus};
use crate::guest::GuestOs;

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Shown where processes and VMs are listed: letters, digits, `-`, at most 32 bytes.
    pub name: String,
    /// What the kernel is: by it drivers know which parameters of their own it takes.
    pub os: GuestOs,
    /// An ELF kernel with a PVH entry.
    pub kernel: PathBuf,
    /// A cpio archive, for a kernel that takes one.
    pub initramfs: Option<PathBuf>,
    /// Kernel parameters.
    pub cmdline: String,
    /// Guest memory.
    pub memory: Memory,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// Directories of the host that the guest may mount by 9p.
    pub shares: Vec<Share>,
    /// Block devices.
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// Byte channels. The agent's is the first.
    pub console_ports: Vec<ConsolePort>,
    /// Whether the guest has a source of entropy.
    pub rng: bool,
    /// A socket device.
    pub vsock: Option<Vsock>,
}

/// A directory of the host in the guest, by virtio-9p.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Mount tag: letters, digits, `-`, at most 31 bytes.
    pub tag: String,
    /// The directory.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub readonly: bool,
}

/// A block device, by virtio-blk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// A raw image or block device of the host.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// By which the guest finds it: letters, digits, `-`, at most 20 bytes.
    pub serial: String,
}

/// A network interface, by virtio-net on a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The tap's name.
    pub tap: String,
    /// The guest's address.
    pub mac: MacAddress,
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if n == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// A virtio-console port that ends in a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsolePort {
    /// By which the guest finds it: letters, digits, `-`, `.`.
    pub name: String,
    /// Where the host connects to: file name in the VM's directory.
    pub socket: String,
}

/// A virtio socket device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vsock {
    /// The guest's address, 3 or more.
    pub cid: u32,
    /// The port on which the agent listens.
    pub port: u32,
}

/// What a spec asks for that no VM can be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// A word would be taken for something else on a command line or in the guest.
    #[error(
        "{field}: `{value}` is empty, too long, or has a character that is not a letter, digit, `-` or `.`"
    )]
    Word {
        /// Which.
        field: &'static str,
        /// What it is.
        value: String,
    },
    /// No agent could be reached.
    #[error("the VM has neither a console port nor a vsock")]
    NoChannel,
    /// The driver lacks it.
    #[error("{hypervisor} has no {what}")]
    Unsupported {
        /// Which driver.
        hypervisor: &'static str,
        /// Which device.
        what: &'static str,
    },
    /// A path cannot be passed on.
    #[error("{field}: `{}` has characters that the hypervisor's command line cannot carry", value.display())]
    Path {
        /// Which.
        field: &'static str,
        /// What it is.
        value: PathBuf,
    },
}

impl VmSpec {
    /// Refuses what every driver would.
    pub fn check(&self) -> Result<(), SpecError> {
        word("name", &self.name, 32)?;
        for share in &self.shares {
            word("shares.tag", &share.tag, 31)?;
        }
        for disk in &self.disks {
            word("disks.serial", &disk.serial, 20)?;
        }
        for nic in &self.nics {
            word("nics.tap", &nic.tap, 15)?;
        }
        for port in &self.console_ports {
            word("console_ports.name", &port.name, 64)?;
            word("console_ports.socket", &port.socket, 32)?;
        }
        if self.console_ports.is_empty() && self.vsock.is_none() {
            return Err(SpecError::NoChannel);
        }
        Ok(())
    }
}

fn word(field: &'static str, value: &str, most: usize) -> Result<(), SpecError> {
    let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if plain && !value.is_empty() && value.len() <= most && !value.starts_with(['-', '.']) {
        Ok(())
    } else {
        Err(SpecError::Word { field, value: value.to_owned() })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> VmSpec {
        VmSpec {
            name: "skep-0123456789abcdef".into(),
            os: GuestOs::Linux,
            kernel: "/guest/vmlinux".into(),
            initramfs: Some("/guest/initramfs.cpio".into()),
            cmdline: "console=ttyS0 quiet".into(),
            memory: Memory::try_from(256).unwrap(),
            vcpus: Vcpus::try_from(2).unwrap(),
            shares: vec![Share { tag: "skep".into(), path: "/run/skep/sb/x/share".into(), readonly: false }],
            disks: Vec::new(),
            nics: Vec::new(),
            console_ports: vec![ConsolePort { name: "skep.agent".into(), socket: "agent.sock".into() }],
            rng: true,
            vsock: None,
        }
    }

    #[test]
    fn words_that_would_be_options_are_refused() {
        example().check().unwrap();
        for bad in ["", "a,b", "a b", "-x", "..", "a=b", &"x".repeat(33)] {
            let spec = VmSpec { name: bad.into(), ..example() };
            assert!(matches!(spec.check(), Err(SpecError::Word { field: "name", .. })), "{bad:?}");
        }
        let mut spec = example();
        spec.shares[0].tag = "a,path=/".into();
        assert!(spec.check().unwrap_err().to_string().contains("shares.tag: `a,path=/`"));
        let spec = VmSpec { console_ports: Vec::new(), ..example() };
        assert_eq!(spec.check(), Err(SpecError::NoChannel));
    }

    #[test]
    fn a_mac_address_reads_as_usual() {
        assert_eq!(MacAddress([2, 0, 0xab, 0xcd, 0xef, 1]).to_string(), "02:00:ab:cd:ef:01");
    }
}
