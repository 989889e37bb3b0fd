//! Linux: /proc, pidfds, mount(2).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

/// Longer than any `/proc/<pid>/stat`: 52 numbers of at most 20 digits and a name of 64 bytes.
const STAT: usize = 1536;

pub(super) fn random(buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::rand::getrandom(buffer, rustix::rand::GetRandomFlags::empty())?)
}

pub(super) fn widen_pipe(pipe: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    Ok(rustix::pipe::fcntl_setpipe_size(pipe, bytes).map(drop)?)
}

/// Moves the calling thread into a network namespace.
pub(super) fn enter_netns(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(netns, Some(rustix::thread::LinkNameSpaceType::Network))?)
}

pub(super) fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let path = std::ffi::CString::new(format!("/proc/{pid}/stat"))?;
    match stat_start_time(&path) {
        Ok(start) => Ok(Some(start)),
        // ESRCH: it went away between open and read.
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::SRCH)) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn own_start_time() -> io::Result<u64> {
    stat_start_time(c"/proc/self/stat")
}

/// Allocates nothing.
fn stat_start_time(path: &CStr) -> io::Result<u64> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0; STAT];
    let n = rustix::io::read(&fd, &mut buffer)?;
    parse_start_time(&buffer[..n]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22 of `proc_pid_stat(5)`. The second, the program's name in parentheses, may contain anything.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let field = stat[name_end + 1..].split(|b| *b == b' ').filter(|f| !f.is_empty()).nth(22 - 3)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

pub(super) fn exit_fd(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn signal(exit_fd: &OwnedFd, _pid: u32, signal: Signal) -> io::Result<bool> {
    match rustix::process::pidfd_send_signal(exit_fd, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn processor_us(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    let ticks = parse_processor_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(ticks.saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second().max(1))
}

/// `utime` and `stime`, fields 14 and 15 of `/proc/<pid>/stat`. The name in field 2 may hold anything.
fn parse_processor_ticks(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&b| b == b')')?;
    let mut fields = std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace().skip(11);
    let mut field = || fields.next()?.parse::<u64>().ok();
    Some(field()?.saturating_add(field()?))
}

pub(super) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|f| f.parse().ok());
    let page = rustix::param::page_size() as u64;
    pages.map(|n| n * page).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// An option of mount(8) and the flag of mount(2) that it sets or clears.
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("async", MountFlags::SYNCHRONOUS, false),
    ("atime", MountFlags::NOATIME, false),
    ("dev", MountFlags::NODEV, false),
    ("diratime", MountFlags::NODIRATIME, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("nodev", MountFlags::NODEV, true),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("noexec", MountFlags::NOEXEC, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("relatime", MountFlags::RELATIME, true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("suid", MountFlags::NOSUID, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
];

const PROPAGATION: &[(&str, MountPropagationFlags)] = &[
    ("private", MountPropagationFlags::PRIVATE),
    ("rprivate", MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC)),
    ("shared", MountPropagationFlags::SHARED),
    ("rshared", MountPropagationFlags::SHARED.union(MountPropagationFlags::REC)),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("rslave", MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC)),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
    ("runbindable", MountPropagationFlags::UNBINDABLE.union(MountPropagationFlags::REC)),
];

/// What mount(8)'s options mean to mount(2).
#[derive(Debug, Default, PartialEq)]
struct Options {
    flags: Option<MountFlags>,
    bind: bool,
    recursive: bool,
    /// Not only the mount itself is read-only but all that comes with it.
    recursive_readonly: bool,
    propagation: Option<MountPropagationFlags>,
    data: Vec<String>,
}

impl Options {
    fn parse(fstype: &str, words: &[String]) -> Self {
        let mut options = Self { bind: fstype == "bind", ..Self::default() };
        let mut flags = MountFlags::empty();
        for word in words.iter().map(String::as_str) {
            if let Some((_, flag, set)) = FLAGS.iter().find(|(name, ..)| *name == word) {
                flags.set(*flag, *set);
            } else if let Some((_, flags)) = PROPAGATION.iter().find(|(name, _)| *name == word) {
                options.propagation = Some(*flags);
            } else {
                match word {
                    "bind" => options.bind = true,
                    "rbind" => {
                        options.bind = true;
                        options.recursive = true;
                    }
                    "rro" => options.recursive_readonly = true,
                    "" | "defaults" => {}
                    _ => options.data.push(word.to_owned()),
                }
            }
        }
        options.flags = Some(flags);
        options
    }
}

pub(super) fn mount(fstype: &str, source: &Path, target: &Path, options: &[String]) -> io::Result<()> {
    let options = Options::parse(fstype, options);
    let flags = options.flags.unwrap_or(MountFlags::empty());
    if options.bind {
        if !options.data.is_empty() {
            let text = format!("a bind mount has no option `{}`", options.data.join(","));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if options.recursive {
            rustix::mount::mount_bind_recursive(source, target)?;
        } else {
            rustix::mount::mount_bind(source, target)?;
        }
    } else {
        mount_with_data(fstype, source, target, flags, &options.data)?;
    }
    // What follows changes the mount made above: if it fails, that must not stay as it is.
    let finish = || -> io::Result<()> {
        if options.bind && !flags.is_empty() {
            // The flags of a bind mount take effect only by a remount, and only for the mount itself: what comes with
            // a recursive one keeps its own.
            rustix::mount::mount_remount(target, flags | MountFlags::BIND, c"")?;
        }
        if options.recursive_readonly {
            readonly_recursively(target)?;
        }
        // Nothing that is mounted for a guest may spread to other namespaces of the host.
        let propagation =
            options.propagation.unwrap_or(MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
        Ok(rustix::mount::mount_change(target, propagation)?)
    };
    finish().inspect_err(|_| {
        let _ = unmount_once(target);
    })
}

/// `mount_setattr(2)`, since Linux 5.12: unlike a remount it keeps the other flags of each mount.
fn readonly_recursively(target: &Path) -> io::Result<()> {
    let target = std::ffi::CString::new(target.as_os_str().as_encoded_bytes())?;
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a C string and the attributes are a structure of the size that is passed along; both live
    // until the call returns, and the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::AT_RECURSIVE | libc::AT_SYMLINK_NOFOLLOW,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn mount_with_data(
    fstype: &str,
    source: &Path,
    target: &Path,
    flags: MountFlags,
    data: &[String],
) -> io::Result<()> {
    let joined = data.join(",");
    // mount(2) takes one page, its last byte being a zero.
    if joined.len() < rustix::param::page_size() {
        let joined = std::ffi::CString::new(joined)?;
        return Ok(rustix::mount::mount(source, target, fstype, flags, &*joined)?);
    }
    let Some((dir, data)) = shorten_lower_dirs(data) else {
        let text =
            format!("{} bytes of options; mount(2) takes {}", joined.len(), rustix::param::page_size());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    // Many layers: named relative to their common directory they may fit. The working directory belongs to the whole
    // process, except in a thread that has left it.
    std::thread::scope(|scope| {
        let in_dir = || -> io::Result<()> {
            let data = std::ffi::CString::new(data.join(","))?;
            // SAFETY: only this thread, which ends below, gets a working directory of its own; no descriptor table or
            // memory is unshared.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
            rustix::process::chdir(&dir)?;
            Ok(rustix::mount::mount(source, target, fstype, flags, &*data)?)
        };
        match scope.spawn(in_dir).join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the thread that mounts panicked")),
        }
    })
}

/// Rewrites overlayfs' `lowerdir=` relative to the longest directory that its layers share.
fn shorten_lower_dirs(data: &[String]) -> Option<(PathBuf, Vec<String>)> {
    let at = data.iter().position(|word| word.starts_with("lowerdir="))?;
    let layers: Vec<&Path> = data[at]["lowerdir=".len()..].split(':').map(Path::new).collect();
    let mut common = layers.first()?.parent()?.to_owned();
    if !common.is_absolute() {
        return None;
    }
    while !layers.iter().all(|layer| layer.starts_with(&common)) {
        common.pop();
    }
    if common == Path::new("/") {
        return None;
    }
    let short: Option<Vec<&str>> =
        layers.iter().map(|layer| layer.strip_prefix(&common).ok().and_then(Path::to_str)).collect();
    let mut data = data.to_vec();
    data[at] = format!("lowerdir={}", short?.join(":"));
    Some((common, data))
}

/// Whether there was something to unmount.
pub(super) fn unmount_once(target: &Path) -> io::Result<bool> {
    let gone = |e| matches!(e, Errno::INVAL | Errno::NOENT);
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(e) if gone(e) => Ok(false),
        // Somebody still has a file open there, or something is mounted below: it goes away with them.
        Err(Errno::BUSY) => {
            match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
                Ok(()) => Ok(true),
                Err(e) if gone(e) => Ok(false),
                Err(e) => Err(e.into()),
            }
        }
        Err(e) => Err(e.into()),
    }
}

pub(super) fn memory_filesystem_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statfs(path).ok()?;
    let block = u64::try_from(stat.f_bsize).ok()?;
    (i128::from(stat.f_type) == i128::from(libc::TMPFS_MAGIC)).then(|| stat.f_blocks.saturating_mul(block))
}

pub(super) fn mount_points() -> io::Result<Vec<PathBuf>> {
    // A thread can be in another mount namespace than its process.
    Ok(parse_mountinfo(&std::fs::read("/proc/thread-self/mountinfo")?))
}

/// Field 5 of each line of `proc_pid_mountinfo(5)`, with its octal escapes undone.
fn parse_mountinfo(text: &[u8]) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;

    text.split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
        .collect()
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let code =
            digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        if let Some(code) = code {
            out.push(code);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Opens the directory `name` in `parent`, unless it is a symbolic link or something is mounted on it (EXDEV).
pub(super) fn open_same_mount(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 99 1";
        for name in ["sleep", "a b) S 1 2 (x", ")))", ""] {
            assert_eq!(parse_start_time(format!("7 ({name}) {tail}\n").as_bytes()), Some(4242), "{name}");
        }
        assert_eq!(parse_start_time(b""), None);
        assert_eq!(parse_start_time(b"7 (x) S 1 2"), None);
    }

    #[test]
    fn processor_time_is_user_and_system() {
        let stat = b"7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 250 17 9 9 20 0 1 0 5 0 0";
        assert_eq!(parse_processor_ticks(stat), Some(267));
        assert_eq!(parse_processor_ticks(b"7 (a) S 1"), None);
        processor_us(std::process::id()).unwrap();
    }

    #[test]
    fn mount_options_are_sorted() {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let options = Options::parse("overlay", &words("ro,nosuid,lowerdir=/a:/b,index=off,rw"));
        assert_eq!(options.flags, Some(MountFlags::NOSUID));
        assert_eq!(options.data, ["lowerdir=/a:/b", "index=off"]);
        let options = Options::parse("bind", &words("rbind,ro,rslave"));
        assert!(options.bind && options.recursive);
        assert_eq!(options.flags, Some(MountFlags::RDONLY));
        assert_eq!(options.propagation, Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC));
    }

    #[test]
    fn layers_are_named_by_what_differs() {
        let data: Vec<String> = ["index=off", "lowerdir=/s/snap/3/fs:/s/snap/2/fs", "upperdir=/s/snap/4/fs"]
            .map(Into::into)
            .into();
        let (dir, data) = shorten_lower_dirs(&data).unwrap();
        assert_eq!(dir, Path::new("/s/snap"));
        assert_eq!(data, ["index=off", "lowerdir=3/fs:2/fs", "upperdir=/s/snap/4/fs"]);
        assert!(shorten_lower_dirs(&["lowerdir=/a/b:/c/d".into()]).is_none());
        assert!(shorten_lower_dirs(&["lowerdir=a:b".into()]).is_none());
    }

    #[test]
    fn mountinfo_names_are_unescaped() {
        let text =
            b"36 35 98:0 / /mnt\\040one rw - ext3 /dev/root rw\n37 36 0:5 / /a\\134b rw - tmpfs x rw\n";
        assert_eq!(parse_mountinfo(text), [PathBuf::from("/mnt one"), PathBuf::from("/a\\b")]);
        assert_eq!(unescape(b"\\9zz\\04"), b"\\9zz\\04");
    }
}
