//! The container's files as a mount namespace of this host, for whoever looks at `/proc/<pid>/root`.
//!
//! All of it may be written by a hostile guest while somebody looks, so its mounts are nosuid, nodev, noexec and
//! nosymfollow: what a caller has resolved by itself it gets, and no link ever leads the host's kernel elsewhere. What
//! only the guest has (its memory file systems, /proc, the upper half of an overlay) is covered by an empty read-only
//! directory, so that nothing is read or written that the container would not see.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::setup::Setup;

/// What a mount of the view is on top of what it was (`linux/mount.h`).
const HARMLESS: u64 =
    libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Leaves the host's mount namespace for one that has only what `setup` says. To be called by a process with one
/// thread.
pub(super) fn enter(setup: &Setup) -> io::Result<()> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: Errno| io::Error::other(format!("{what}: {}", io::Error::from(error)))
    };
    // SAFETY: no other thread shares what is unshared, and no descriptor depends on the namespace.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(failed("a mount namespace"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("making mounts private"))?;

    let root = match &setup.root {
        Some(path) => clone_of(path).map_err(failed(&path.display().to_string()))?,
        None => empty(false).map_err(failed("an empty root"))?,
    };
    if setup.readonly {
        set_attributes(&root, libc::MOUNT_ATTR_RDONLY, false)?;
    }
    let mut sources = Vec::new();
    for mounted in &setup.mounts {
        let source = mounted.source.as_ref();
        let opened = source.map(|path| clone_of(path).map_err(failed(&path.display().to_string())));
        sources.push(opened.transpose()?);
    }
    // One empty directory covers all that is the guest's own. It has to be somewhere before it can be cloned.
    let cover = empty(true).map_err(failed("an empty cover"))?;
    attach(&cover, CWD, &setup.scratch).map_err(failed("mounting the cover"))?;
    for source in &mut sources {
        if source.is_none() {
            *source = Some(clone_of(&setup.scratch).map_err(failed("cloning the cover"))?);
        }
    }
    attach(&root, CWD, &setup.scratch).map_err(failed("mounting the root"))?;
    rustix::process::chdir(&setup.scratch).map_err(failed("the root"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("leaving the host's mounts"))?;
    rustix::process::chdir("/").map_err(failed("/"))?;

    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (mounted, source) in setup.mounts.iter().zip(&sources) {
        let Some(source) = source else { continue };
        if setup.root.is_none() && mounted.source.is_some() {
            make_place(&root, &mounted.destination, source)?;
        }
        // What is not there, or not as it was, has been changed by the guest: it is not shown.
        if let Ok(place) = beneath(&root, &mounted.destination) {
            let _ = attach(source, &place, Path::new(""));
        }
    }
    drop(root);
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    set_attributes(&root, HARMLESS, true)?;
    if setup.root.is_none() {
        set_attributes(&root, libc::MOUNT_ATTR_RDONLY, false)?;
    }
    Ok(())
}

/// A mount of its own of what is at `path`, with all that is mounted below.
fn clone_of(path: &Path) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags)
}

/// An empty directory on a file system of its own.
fn empty(readonly: bool) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "64k"), ("nr_inodes", "1k"), ("mode", "0555")] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = if readonly { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Mounts `tree` on `path` below `at`, or on `at` itself.
fn attach(tree: &OwnedFd, at: impl AsFd, path: &Path) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", at, path, flags)
}

/// Opens a path as the container would: its links lead nowhere but below `root`.
fn beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Makes what `source` is to be mounted on, in a root that only this process has ever written.
fn make_place(root: &OwnedFd, destination: &Path, source: &OwnedFd) -> io::Result<()> {
    let names: Vec<_> = destination
        .components()
        .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
        .collect();
    let Some((last, parents)) = names.split_last() else { return Ok(()) };
    let mut at = root.try_clone()?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let exists = |result: Result<(), Errno>| match result {
        // Below another mount, which has it or has not.
        Err(Errno::EXIST | Errno::ROFS) => Ok(()),
        other => other,
    };
    for name in parents {
        exists(rustix::fs::mkdirat(&at, *name, Mode::from_raw_mode(0o555)))?;
        match rustix::fs::openat(&at, *name, directory, Mode::empty()) {
            Ok(next) => at = next,
            Err(_) => return Ok(()),
        }
    }
    let is_directory = rustix::fs::fstat(source)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    if is_directory {
        return Ok(exists(rustix::fs::mkdirat(&at, *last, Mode::from_raw_mode(0o555)))?);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let created = rustix::fs::openat(&at, *last, flags, Mode::from_raw_mode(0o444)).map(drop);
    Ok(exists(created)?)
}

/// `mount_setattr(2)` on the mount that `tree` is the root of.
fn set_attributes(tree: &OwnedFd, set: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and the attributes are a structure of the size that is passed along; both live
    // until the call returns, and the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::other(format!("mount_setattr, which this needs of Linux 5.14 or later: {error}")))
}
