//! FreeBSD: sysctl(3), modfind(2), pfctl(8).

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::super::ANCHOR;
use super::super::facts::{BhyveFacts, FreeBsdFacts, PfFacts, Virtualisation};
use super::containerd::{Process, words};
use super::{command, sysctl};
use crate::hypervisor::bhyve::vmmapi::VmmApi;

unsafe extern "C" {
    /// modfind(2), which the libc crate does not have.
    fn modfind(name: *const c_char) -> c_int;
}

/// What networks and mounts need, by the names of modfind(2).
const MODULES: [&str; 5] = ["nullfs", "if_tuntap", "if_bridge", "if_vxlan", "pf"];
/// What networks need to be set.
const SYSCTLS: [&str; 4] = [
    "net.link.bridge.pfil_member",
    "net.link.bridge.pfil_onlyip",
    "net.inet.ip.forwarding",
    "kern.features.vimage",
];

pub(super) fn facts() -> FreeBsdFacts {
    FreeBsdFacts {
        osreldate: integer("kern.osreldate"),
        modules: MODULES.map(|name| (name, module_is_loaded(name))).into(),
        sysctls: SYSCTLS.map(|name| (name, integer(name))).into(),
        pf: pf(),
    }
}

pub(super) fn bhyve() -> BhyveFacts {
    let program = Path::new("/usr/sbin/bhyve");
    let vmm = module_is_loaded("vmm");
    // -h says how it is used, by status 0 or not.
    let usage = command::run(program, &["-h"]);
    let config = sysctl::text(c"kern.conftxt").filter(|text| !text.is_empty());
    BhyveFacts {
        program: program.exists(),
        library: VmmApi::load().map(|api| api.soname().to_owned()).map_err(|e| e.to_string()),
        virtualisation: virtualisation(),
        vmm,
        vmm_ready: vmm.then(vmm_is_ready),
        devfs: filesystem(Path::new("/dev")).map(|fstype| fstype == "devfs").map_err(|e| e.to_string()),
        bhyve_snapshot: usage.map(|(_, text)| text.lines().any(|line| line.trim_start().starts_with("-r:"))),
        kernel_snapshot: config.map(|text| text.contains("BHYVE_SNAPSHOT")),
    }
}

/// vmm shows the flags of its nested page tables once it has initialised them (`sys/amd64/vmm/intel/ept.c`,
/// `sys/amd64/vmm/amd/npt.c`).
fn vmm_is_ready() -> bool {
    let set = |name| integer(name).is_some_and(|flags| flags != 0);
    set("hw.vmm.ept.pmap_flags") || set("hw.vmm.npt.pmap_flags")
}

#[cfg(target_arch = "x86_64")]
fn virtualisation() -> Virtualisation {
    use std::arch::x86_64::__cpuid;

    // CPUID.1:ECX.VMX[5], Intel SDM 3.23.6; Fn8000_0001_ECX.SVM[2] and Fn8000_000A_EDX.NP[0], AMD APM 15.4.
    if __cpuid(1).ecx & 1 << 5 != 0 {
        return Virtualisation::Vmx;
    }
    let extended = __cpuid(0x8000_0000).eax;
    if extended >= 0x8000_000a && __cpuid(0x8000_0001).ecx & 1 << 2 != 0 {
        return Virtualisation::Svm { nested_paging: __cpuid(0x8000_000a).edx & 1 != 0 };
    }
    Virtualisation::None
}

#[cfg(not(target_arch = "x86_64"))]
fn virtualisation() -> Virtualisation {
    Virtualisation::None
}

pub(super) fn available_mib() -> Result<u64, String> {
    let pages = |name: String| integer(&name).ok_or_else(|| format!("no sysctl {name}"));
    let mut all = 0;
    for name in ["v_free_count", "v_inactive_count", "v_laundry_count"] {
        all += pages(format!("vm.stats.vm.{name}"))?;
    }
    Ok(all.saturating_mul(rustix::param::page_size() as u64) >> 20)
}

pub(super) fn filesystem_type(path: &Path) -> Option<String> {
    filesystem(path).ok()
}

fn filesystem(path: &Path) -> std::io::Result<String> {
    let facts = rustix::fs::statfs(path)?;
    // SAFETY: `mnt_stat.f_fstypename` is an array that the kernel terminates by a zero.
    let name = unsafe { CStr::from_ptr(facts.f_fstypename.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

/// The process that listens at the other end: `LOCAL_PEERCRED`, unix(4).
pub(super) fn peer(stream: &UnixStream) -> Option<u32> {
    /// `SOL_LOCAL`, `sys/un.h`.
    const SOL_LOCAL: c_int = 0;
    // SAFETY: all of its fields are integers.
    let mut credentials: libc::xucred = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of::<libc::xucred>()).ok()?;
    // SAFETY: the descriptor is open, and `credentials` has `size` bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            SOL_LOCAL,
            libc::LOCAL_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut size,
        )
    };
    // SAFETY: both fields of the union are that large, and any bytes are a number.
    let pid = unsafe { credentials.cr_pid__c_anonymous_union.cr_pid };
    u32::try_from(pid).ok().filter(|pid| result == 0 && *pid != 0)
}

pub(super) fn process(pid: u32) -> Option<Process> {
    let of = |what| sysctl::of_process(what, pid);
    let program = of(libc::KERN_PROC_PATHNAME).and_then(|bytes| words(&bytes).into_iter().next());
    Some(Process {
        program: program.map(PathBuf::from),
        arguments: words(&of(libc::KERN_PROC_ARGS)?),
        environment: of(libc::KERN_PROC_ENV).map(|bytes| words(&bytes)).unwrap_or_default(),
    })
}

/// Whether a kernel module of that name is loaded or built in.
fn module_is_loaded(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: a terminated string that outlives the call.
    unsafe { modfind(name.as_ptr()) >= 0 }
}

fn integer(name: &str) -> Option<u64> {
    sysctl::integer(&CString::new(name).ok()?)
}

fn pf() -> Result<PfFacts, String> {
    let ask = |what: &str| command::output(Path::new("/sbin/pfctl"), &["-s", what]);
    let (info, rules, memory) = (ask("info")?, ask("rules")?, ask("memory")?);
    let anchor = format!("anchor \"{ANCHOR}\" ");
    Ok(PfFacts {
        enabled: info.lines().any(|line| line.starts_with("Status: Enabled")),
        anchor: rules.lines().any(|line| format!("{} ", line.trim()).starts_with(&anchor)),
        anchors: memory.lines().find(|line| line.starts_with("anchors")).and_then(limit),
    })
}

/// `anchors       hard limit      512`
fn limit(line: &str) -> Option<u64> {
    line.split_whitespace().next_back()?.parse().ok()
}
