//! Values with a range, refused where they are read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Directory below which sandboxes live.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "PathBuf")]
pub struct StateDir(PathBuf);

/// `/sb/`, 16 characters of hash, `/` and the longest socket name, with its terminating zero.
const BELOW_STATE_DIR: usize = "/sb/0123456789abcdef/vsock.sock_1024".len() + 1;
/// `sun_path` of FreeBSD's `struct sockaddr_un` (Linux has 108).
const SUN_PATH: usize = 104;

impl TryFrom<PathBuf> for StateDir {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if !path.is_absolute() {
            return Err(format!("`{}` is not an absolute path", path.display()));
        }
        if path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
            return Err(format!("`{}` contains `..`", path.display()));
        }
        let most = SUN_PATH - BELOW_STATE_DIR;
        if path.as_os_str().len() > most {
            return Err(format!(
                "`{}` is longer than {most} bytes, which leaves no room for the unix sockets below it",
                path.display()
            ));
        }
        Ok(Self(path))
    }
}

impl Default for StateDir {
    fn default() -> Self {
        Self(PathBuf::from(if cfg!(target_os = "freebsd") { "/var/run/skep" } else { "/run/skep" }))
    }
}

impl std::ops::Deref for StateDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// A count of virtual CPUs, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "u64")]
pub struct Vcpus(u32);

impl Vcpus {
    pub(super) const DEFAULT: Self = Self(1);
    pub(super) const MOST: Self = Self(64);

    /// The count.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Vcpus {
    type Error = String;

    fn try_from(count: u64) -> Result<Self, String> {
        match u32::try_from(count) {
            Ok(n) if (1..=Self::MOST.0).contains(&n) => Ok(Self(n)),
            _ => Err(format!("{count} virtual CPUs; a VM can have 1 to {}", Self::MOST)),
        }
    }
}

impl fmt::Display for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A count of network devices, 0 to 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "u64")]
pub struct Interfaces(usize);

impl Interfaces {
    pub(super) const DEFAULT: Self = Self(1);
    const MOST: usize = 16;

    /// The count.
    pub fn get(self) -> usize {
        self.0
    }
}

impl TryFrom<u64> for Interfaces {
    type Error = String;

    fn try_from(count: u64) -> Result<Self, String> {
        match usize::try_from(count) {
            Ok(n) if n <= Self::MOST => Ok(Self(n)),
            _ => Err(format!("{count} network interfaces; a VM can have up to {}", Self::MOST)),
        }
    }
}

/// A VM's memory in MiB, 64 to 1048576 (1 TiB).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "u64")]
pub struct Memory(u32);

impl Memory {
    pub(super) const DEFAULT: Self = Self(256);
    pub(super) const MOST: Self = Self(1 << 20);
    /// Below it the guest's kernel does not reach the agent.
    const LEAST: u32 = 64;

    /// In MiB.
    pub fn mib(self) -> u32 {
        self.0
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl TryFrom<u64> for Memory {
    type Error = String;

    fn try_from(mib: u64) -> Result<Self, String> {
        match u32::try_from(mib) {
            Ok(n) if (Self::LEAST..=Self::MOST.0).contains(&n) => Ok(Self(n)),
            _ => Err(format!("{mib} MiB of memory; a VM can have {} to {} MiB", Self::LEAST, Self::MOST.0)),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A limit of time, 1 to 3600 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u64")]
pub struct Seconds(u16);

impl Seconds {
    const MOST: u16 = 3600;

    pub(super) const fn new(seconds: u16) -> Self {
        Self(seconds)
    }

    /// As the clock takes it.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl TryFrom<u64> for Seconds {
    type Error = String;

    fn try_from(seconds: u64) -> Result<Self, String> {
        match u16::try_from(seconds) {
            Ok(n) if (1..=Self::MOST).contains(&n) => Ok(Self(n)),
            _ => Err(format!("{seconds} seconds; a limit is 1 to {} seconds", Self::MOST)),
        }
    }
}

/// How a container's root is made from the tree that the host shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum RootfsMode {
    /// The shared tree itself, over 9p: writes reach the snapshot.
    #[default]
    #[serde(rename = "9p")]
    Shared,
    /// An overlay: the shared tree below, guest memory above. Fast; writes die with the container.
    #[serde(rename = "overlay")]
    Overlay,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept() {
        assert_eq!(Vcpus::try_from(1).unwrap().get(), 1);
        assert_eq!(Vcpus::try_from(64).unwrap().get(), 64);
        for bad in [0, 65, u64::MAX] {
            assert!(Vcpus::try_from(bad).unwrap_err().contains(&bad.to_string()));
        }
        assert_eq!(Memory::try_from(64).unwrap().bytes(), 64 << 20);
        for bad in [0, 63, (1 << 20) + 1, 1 << 40] {
            assert!(Memory::try_from(bad).is_err());
        }
        assert!(Seconds::try_from(0).is_err());
        assert_eq!(Seconds::try_from(3600).unwrap().duration(), Duration::from_secs(3600));
        assert!(Seconds::try_from(3601).is_err());
    }

    #[test]
    fn a_state_dir_leaves_room_for_sockets() {
        for bad in ["run/skep", "/run/../etc", &format!("/{}", "x".repeat(80))] {
            assert!(StateDir::try_from(PathBuf::from(bad)).is_err(), "{bad}");
        }
        let longest = PathBuf::from(format!("/{}", "x".repeat(SUN_PATH - BELOW_STATE_DIR - 1)));
        assert_eq!(&*StateDir::try_from(longest.clone()).unwrap(), longest);
    }
}
