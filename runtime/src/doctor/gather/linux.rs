//! Linux: /proc, /sys, /lib/modules.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::super::facts::{BhyveFacts, Cgroup, LinuxFacts, Module, Virtualisation};
use super::containerd::{Process, words};
use crate::hypervisor::bhyve::vmmapi::VmmApi;

/// What networks need, and what shows it where it is built in: `/sys/module` lists a built-in one only if it has
/// parameters.
const MODULES: [(&str, &str); 5] = [
    ("tun", "/dev/net/tun"),
    ("bridge", "/sys/module/bridge"),
    ("br_netfilter", "/proc/sys/net/bridge"),
    ("nf_tables", "/sys/module/nf_tables"),
    ("vxlan", "/sys/module/vxlan"),
];

pub(super) fn facts() -> LinuxFacts {
    LinuxFacts {
        distribution: distribution(&read("/etc/os-release")),
        modules: MODULES.map(|(name, sign)| (name, module(name, sign))).into(),
        ip_forward: match read("/proc/sys/net/ipv4/ip_forward").trim() {
            "" => None,
            value => Some(value == "1"),
        },
        cgroup: cgroup(),
    }
}

/// There is none here, which is all there is to say.
pub(super) fn bhyve() -> BhyveFacts {
    BhyveFacts {
        program: false,
        library: VmmApi::load().map(|api| api.soname().to_owned()).map_err(|e| e.to_string()),
        virtualisation: Virtualisation::None,
        vmm: false,
        vmm_ready: None,
        devfs: Ok(false),
        bhyve_snapshot: Ok(false),
        kernel_snapshot: None,
    }
}

pub(super) fn available_mib() -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|e| e.to_string())?;
    available(&text).ok_or_else(|| "/proc/meminfo has no MemAvailable".into())
}

fn available(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

/// The file system type of the last mount whose place is above `path`: later ones hide earlier ones.
pub(super) fn filesystem_type(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    type_in(&std::fs::read_to_string("/proc/self/mounts").ok()?, &path)
}

fn type_in(mounts: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(point), Some(fstype)) = (words.next(), words.next()) else { continue };
        let point = Path::new(point);
        let depth = point.components().count();
        if path.starts_with(point) && best.is_none_or(|(deepest, _)| depth >= deepest) {
            best = Some((depth, fstype));
        }
    }
    best.map(|(_, fstype)| fstype.to_owned())
}

/// The process that listens at the other end.
pub(super) fn peer(stream: &UnixStream) -> Option<u32> {
    let credentials = rustix::net::sockopt::socket_peercred(stream).ok()?;
    u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()
}

pub(super) fn process(pid: u32) -> Option<Process> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let list = |name: &str| Some(words(&std::fs::read(dir.join(name)).ok()?));
    Some(Process {
        program: std::fs::read_link(dir.join("exe")).ok(),
        arguments: list("cmdline")?,
        environment: list("environ").unwrap_or_default(),
    })
}

/// `ID`, then `ID_LIKE`: os-release(5).
fn distribution(os_release: &str) -> Vec<String> {
    let field = |name: &str| os_release.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let words = [field("ID="), field("ID_LIKE=")];
    words.iter().flat_map(|value| value.trim_matches('"').split_whitespace()).map(str::to_owned).collect()
}

fn module(name: &str, sign: &str) -> Module {
    if Path::new(sign).exists() || Path::new("/sys/module").join(name).exists() {
        return Module::Present;
    }
    let release = read("/proc/sys/kernel/osrelease");
    let dir = Path::new("/lib/modules").join(release.trim());
    let (Ok(builtin), Ok(loadable)) = (
        std::fs::read_to_string(dir.join("modules.builtin")),
        std::fs::read_to_string(dir.join("modules.dep")),
    ) else {
        return Module::Unknown;
    };
    if lists(&builtin, name) {
        Module::Present
    } else if lists(&loadable, name) {
        Module::Loadable
    } else {
        Module::Absent
    }
}

/// Whether a line names the module: `kernel/net/bridge/br_netfilter.ko.xz: …`.
fn lists(modules: &str, name: &str) -> bool {
    modules.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split(".ko").next().is_some_and(|module| module.replace('-', "_") == name)
    })
}

/// cgroups(7).
fn cgroup() -> Cgroup {
    let root = Path::new("/sys/fs/cgroup");
    let exists = |name: &str| root.join(name).exists();
    if exists("cgroup.controllers") {
        Cgroup::V2
    } else if exists("unified") {
        Cgroup::Hybrid
    } else if exists("memory") || exists("cpu") {
        Cgroup::V1
    } else {
        Cgroup::None
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_known_by_themselves_and_by_what_they_are_like() {
        let text = "NAME=\"Rocky\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=9\n";
        assert_eq!(distribution(text), ["rocky", "rhel", "centos", "fedora"]);
        assert_eq!(distribution("ID=debian\n"), ["debian"]);
        assert!(distribution("").is_empty());
    }

    #[test]
    fn modules_are_found_by_their_whole_name() {
        let list = "kernel/net/bridge/br_netfilter.ko.zst: kernel/net/bridge/bridge.ko.zst\nkernel/drivers/net/tun.ko:\n";
        assert!(lists(list, "br_netfilter") && lists(list, "tun"));
        // It is only what another one needs.
        assert!(!lists(list, "bridge") && !lists(list, "netfilter"));
        assert!(lists("kernel/net/nf-tables.ko", "nf_tables"));
    }

    #[test]
    fn the_deepest_and_last_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/b /run/skep xfs rw 0 0\nn /run tmpfs rw 0 0\n";
        assert_eq!(type_in(mounts, Path::new("/run/skep/sb")).as_deref(), Some("xfs"));
        assert_eq!(type_in(mounts, Path::new("/runner")).as_deref(), Some("ext4"));
        assert_eq!(type_in("", Path::new("/")), None);
    }

    #[test]
    fn memory_is_what_is_available() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    2048000 kB\n"), Some(2000));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        assert!(available_mib().unwrap() > 0);
    }

    #[test]
    fn a_listener_is_known_by_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let pid = peer(&UnixStream::connect(&path).unwrap()).unwrap();
        assert_eq!(pid, std::process::id());
        let process = process(pid).unwrap();
        assert_eq!(process.program, std::env::current_exe().ok());
        assert!(!process.environment.is_empty() && !process.arguments.is_empty());
    }
}
