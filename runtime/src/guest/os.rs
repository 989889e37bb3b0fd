//! The operating systems that guests have.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The operating system of a guest, and so of the images that run in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestOs {
    /// Linux: containers by namespaces and cgroups.
    #[default]
    Linux,
    /// FreeBSD: containers are jails.
    FreeBsd,
}

impl GuestOs {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Linux, Self::FreeBsd];

    /// As images and manifests name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::FreeBsd => "freebsd",
        }
    }

    /// What builds such a guest.
    pub(super) fn recipe(self) -> &'static str {
        match self {
            Self::Linux => "cargo xtask guest",
            Self::FreeBsd => "cargo xtask freebsd guest",
        }
    }

    /// The configuration's key that says where it is.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Linux => "dir",
            Self::FreeBsd => "freebsd_dir",
        }
    }
}

impl fmt::Display for GuestOs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux",
            Self::FreeBsd => "FreeBSD",
        })
    }
}
