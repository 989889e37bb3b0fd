//! FreeBSD: sysctl(3), kqueue(2), nmount(2).

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::event::kqueue::{Event, EventFilter, EventFlags, ProcessEvents, kevent, kqueue};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

pub(super) fn random(buffer: &mut [u8]) -> io::Result<usize> {
    // getentropy(3) gives at most 256 bytes.
    let n = buffer.len().min(256);
    // SAFETY: the pointer and length are of a live slice.
    match unsafe { libc::getentropy(buffer.as_mut_ptr().cast(), n) } {
        0 => Ok(n),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `kern.proc.pid.<pid>`, sysctl(3). Allocates nothing.
fn kinfo(pid: i32) -> io::Result<Option<libc::kinfo_proc>> {
    let mib = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid];
    let mut info = MaybeUninit::<libc::kinfo_proc>::zeroed();
    let mut size = size_of::<libc::kinfo_proc>();
    // SAFETY: `mib` has four elements; `info` and `size` describe a buffer of the structure's size.
    let result = unsafe {
        libc::sysctl(mib.as_ptr(), 4, info.as_mut_ptr().cast(), &raw mut size, std::ptr::null(), 0)
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
    }
    if size < size_of::<libc::kinfo_proc>() {
        return Ok(None);
    }
    // SAFETY: the kernel filled all of it, and any bytes are a valid kinfo_proc, which has no references.
    Ok(Some(unsafe { info.assume_init() }))
}

/// `kern.boottime`, sysctl(3), in microseconds since the epoch. Allocates nothing.
fn boot_time() -> io::Result<i64> {
    let mib = [libc::CTL_KERN, libc::KERN_BOOTTIME];
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut size = size_of::<libc::timeval>();
    // SAFETY: `mib` has two elements; `time` and `size` describe a buffer of the structure's size.
    let result =
        unsafe { libc::sysctl(mib.as_ptr(), 2, (&raw mut time).cast(), &raw mut size, std::ptr::null(), 0) };
    if result == 0 { Ok(microseconds(&time)) } else { Err(io::Error::last_os_error()) }
}

fn microseconds(time: &libc::timeval) -> i64 {
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec)
}

/// How often the clock may be set while one process is looked at.
const CLOCK_SETTINGS: usize = 8;

/// When a process started, after the system's own start. `ki_start` itself is wall-clock time, which changes for all
/// processes when the clock is set: the kernel adds its notion of when it booted to what it keeps.
fn start_since_boot(pid: i32) -> io::Result<Option<u64>> {
    let mut boot = boot_time()?;
    for _ in 0..CLOCK_SETTINGS {
        let Some(info) = kinfo(pid)? else { return Ok(None) };
        let after = boot_time()?;
        if after == boot {
            return Ok(Some(microseconds(&info.ki_start).saturating_sub(boot).unsigned_abs()));
        }
        boot = after;
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// There is nothing to be done.
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(super) fn widen_pipe(_: BorrowedFd<'_>, _: usize) -> io::Result<()> {
    Ok(())
}

/// There are no network namespaces.
pub(super) fn enter_netns(_: BorrowedFd<'_>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let Ok(pid) = i32::try_from(pid) else { return Ok(None) };
    start_since_boot(pid)
}

pub(super) fn own_start_time() -> io::Result<u64> {
    // SAFETY: getpid(2) cannot fail and touches no memory.
    let pid = unsafe { libc::getpid() };
    start_since_boot(pid)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A kqueue that has an event, never read, once the process has exited.
pub(super) fn exit_fd(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let queue = kqueue()?;
    rustix::io::fcntl_setfd(&queue, rustix::io::FdFlags::CLOEXEC)?;
    let filter = EventFilter::Proc { pid, flags: ProcessEvents::EXIT };
    let change = Event::new(filter, EventFlags::ADD, std::ptr::null_mut());
    // SAFETY: the change names no descriptor that could be closed meanwhile, and no event is read.
    match unsafe { kevent(&queue, &[change], &mut Vec::<Event>::new(), None) } {
        Ok(_) => Ok(Some(queue)),
        Err(Errno::SRCH) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn signal(_exit_fd: &OwnedFd, pid: u32, signal: Signal) -> io::Result<bool> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn processor_us(pid: u32) -> io::Result<u64> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
    let info = kinfo(pid)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok(info.ki_runtime)
}

pub(super) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
    let info = kinfo(pid)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let pages = u64::try_from(info.ki_rssize).unwrap_or(0);
    Ok(pages * rustix::param::page_size() as u64)
}

/// An option of mount(8) and the flag of nmount(2) that it sets.
const FLAGS: &[(&str, libc::c_int)] = &[
    ("ro", libc::MNT_RDONLY),
    ("nosuid", libc::MNT_NOSUID),
    ("noexec", libc::MNT_NOEXEC),
    ("noatime", libc::MNT_NOATIME),
    ("sync", libc::MNT_SYNCHRONOUS),
];

pub(super) fn mount(fstype: &str, source: &Path, target: &Path, options: &[String]) -> io::Result<()> {
    // Pairs of name and value, each with its terminating zero: nmount(2).
    let mut words: Vec<CString> = Vec::new();
    let mut pair = |name: &str, value: &[u8]| -> io::Result<()> {
        words.push(CString::new(name)?);
        words.push(CString::new(value)?);
        Ok(())
    };
    let source_name = if fstype == "nullfs" { "target" } else { "from" };
    pair("fstype", fstype.as_bytes())?;
    pair("fspath", target.as_os_str().as_bytes())?;
    pair(source_name, source.as_os_str().as_bytes())?;
    let mut flags = 0;
    for option in options {
        match FLAGS.iter().find(|(name, _)| name == option) {
            Some((_, flag)) => flags |= flag,
            None if matches!(option.as_str(), "" | "rw" | "defaults") => {}
            None => {
                let (name, value) = option.split_once('=').unwrap_or((option, ""));
                pair(name, value.as_bytes())?;
            }
        }
    }
    let mut vectors: Vec<libc::iovec> = words
        .iter()
        .map(|word| libc::iovec {
            iov_base: word.as_ptr().cast_mut().cast(),
            iov_len: word.as_bytes_with_nul().len(),
        })
        .collect();
    let count = u32::try_from(vectors.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: every vector points into `words`, which outlives the call; nmount(2) only reads them.
    match unsafe { libc::nmount(vectors.as_mut_ptr(), count, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether there was something to unmount.
pub(super) fn unmount_once(target: &Path) -> io::Result<bool> {
    let path = CString::new(target.as_os_str().as_bytes())?;
    for flags in [0, libc::MNT_FORCE] {
        // SAFETY: `path` is a terminated string that outlives the call.
        if unsafe { libc::unmount(path.as_ptr(), flags) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOENT) => return Ok(false),
            Some(libc::EBUSY) if flags == 0 => {}
            _ => return Err(error),
        }
    }
    Ok(false)
}

/// Nobody makes one for a pod's /dev/shm here.
pub(super) fn memory_filesystem_bytes(_: &Path) -> Option<u64> {
    None
}

pub(super) fn mount_points() -> io::Result<Vec<PathBuf>> {
    // SAFETY: with no buffer, getfsstat(2) only counts.
    let count = unsafe { libc::getfsstat(std::ptr::null_mut(), 0, libc::MNT_NOWAIT) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // Room for what is mounted meanwhile.
    let mut mounts: Vec<libc::statfs> = Vec::with_capacity(count + 16);
    let bytes = libc::c_long::try_from(mounts.capacity() * size_of::<libc::statfs>())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the buffer has `bytes` bytes.
    let filled = unsafe { libc::getfsstat(mounts.as_mut_ptr(), bytes, libc::MNT_NOWAIT) };
    let filled = usize::try_from(filled).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled that many elements, never more than there is room for.
    unsafe { mounts.set_len(filled.min(mounts.capacity())) };
    Ok(mounts
        .iter()
        .map(|mount| {
            // SAFETY: the kernel terminates f_mntonname within its array.
            let name = unsafe { CStr::from_ptr(mount.f_mntonname.as_ptr()) };
            PathBuf::from(OsStr::from_bytes(name.to_bytes()))
        })
        .collect())
}

/// Opens the directory `name` in `parent`, unless it is a symbolic link or something is mounted on it (EXDEV): every
/// mount, nullfs included, has a device number of its own.
pub(super) fn open_same_mount(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let parent = parent.as_fd();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    if rustix::fs::fstat(&dir)?.st_dev == rustix::fs::fstat(parent)?.st_dev {
        Ok(dir)
    } else {
        Err(Errno::XDEV)
    }
}
