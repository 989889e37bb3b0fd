//! What to type on which system.

use super::facts::{Facts, SystemFacts};

/// How a system installs what it lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packages {
    /// Debian and what comes of it.
    Apt,
    /// Fedora, Red Hat and what comes of them.
    Dnf,
    Zypper,
    Pacman,
    Apk,
    /// FreeBSD.
    Pkg,
    /// A Linux that is none of these.
    Unknown,
}

/// Something to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Qemu,
    Containerd,
    VhostDeviceVsock,
}

impl Packages {
    pub(super) fn of(facts: &Facts) -> Self {
        match &facts.system {
            SystemFacts::FreeBsd(_) => Self::Pkg,
            SystemFacts::Linux(linux) => Self::of_distribution(&linux.distribution),
        }
    }

    fn of_distribution(ids: &[String]) -> Self {
        let known = ids.iter().find_map(|id| match id.as_str() {
            "debian" | "ubuntu" => Some(Self::Apt),
            "fedora" | "rhel" | "centos" => Some(Self::Dnf),
            "suse" | "opensuse" | "sles" => Some(Self::Zypper),
            "arch" => Some(Self::Pacman),
            "alpine" => Some(Self::Apk),
            _ => None,
        });
        known.unwrap_or(Self::Unknown)
    }

    /// The command that installs a program.
    pub(super) fn install(self, program: Program) -> String {
        use Program::{Containerd, Qemu, VhostDeviceVsock};

        let (command, package) = match (self, program) {
            (_, VhostDeviceVsock) => return "cargo install vhost-device-vsock".into(),
            (Self::Unknown, Qemu) => return "install QEMU for x86_64 (qemu-system-x86_64)".into(),
            (Self::Unknown, Containerd) => return "install containerd".into(),
            (Self::Apt, Qemu) => ("apt-get install", "qemu-system-x86"),
            (Self::Dnf, Qemu) => ("dnf install", "qemu-system-x86-core"),
            (Self::Zypper, Qemu) => ("zypper install", "qemu-x86"),
            (Self::Pacman, Qemu) => ("pacman -S", "qemu-system-x86"),
            (Self::Apk, Qemu) => ("apk add", "qemu-system-x86_64"),
            (Self::Pkg, Qemu) => ("pkg install", "qemu"),
            (Self::Apt, Containerd) => ("apt-get install", "containerd"),
            (Self::Dnf, Containerd) => ("dnf install", "containerd"),
            (Self::Zypper, Containerd) => ("zypper install", "containerd"),
            (Self::Pacman, Containerd) => ("pacman -S", "containerd"),
            (Self::Apk, Containerd) => ("apk add", "containerd"),
            (Self::Pkg, Containerd) => ("pkg install", "containerd"),
        };
        format!("{command} {package}")
    }

    /// The command that starts containerd, now and at boot.
    pub(super) fn start_containerd(self) -> &'static str {
        match self {
            Self::Pkg => "sysrc containerd_enable=YES && service containerd start",
            Self::Apk => "rc-update add containerd && rc-service containerd start",
            _ => "systemctl enable --now containerd",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_distribution_has_its_own_words() {
        let of =
            |ids: &str| Packages::of_distribution(&ids.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let cases = [
            ("debian", "apt-get install qemu-system-x86"),
            ("linuxmint ubuntu debian", "apt-get install qemu-system-x86"),
            ("rocky rhel centos fedora", "dnf install qemu-system-x86-core"),
            ("opensuse-leap suse opensuse", "zypper install qemu-x86"),
            ("arch", "pacman -S qemu-system-x86"),
            ("alpine", "apk add qemu-system-x86_64"),
        ];
        for (ids, command) in cases {
            assert_eq!(of(ids).install(Program::Qemu), command, "{ids}");
        }
        assert!(of("haiku").install(Program::Qemu).contains("qemu-system-x86_64"));
        assert!(Packages::Pkg.start_containerd().contains("sysrc"));
    }
}
