//! nmount(2) and unmount(2).

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Mounts a file system with its own options, each a name and a value.
pub(crate) fn mount(kind: &str, at: &Path, options: &[(&str, &[u8])], flags: libc::c_int) -> nix::Result<()> {
    let pairs = [("fstype", kind.as_bytes()), ("fspath", at.as_os_str().as_bytes())];
    let words: Vec<CString> = pairs
        .iter()
        .chain(options)
        .flat_map(|(name, value)| [name.as_bytes(), value])
        .map(|word| CString::new(word).map_err(|_| Errno::EINVAL))
        .collect::<Result<_, _>>()?;
    let mut vectors: Vec<libc::iovec> = words.iter().map(|word| vector(word)).collect();
    let count = u32::try_from(vectors.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: every vector points into `words`, which outlives the call; nmount(2) only reads them.
    Errno::result(unsafe { libc::nmount(vectors.as_mut_ptr(), count, flags) }).map(drop)
}

fn vector(word: &CStr) -> libc::iovec {
    libc::iovec { iov_base: word.as_ptr().cast_mut().cast(), iov_len: word.count_bytes() + 1 }
}

/// Unmounts, whoever still uses it. That nothing is mounted there is no error.
pub(crate) fn unmount(at: &Path) -> nix::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `path` is terminated and outlives the call.
    match Errno::result(unsafe { libc::unmount(path.as_ptr(), libc::MNT_FORCE) }) {
        Ok(_) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where something is mounted below `dir`, the last mounted first.
pub(crate) fn below(dir: &Path) -> nix::Result<Vec<PathBuf>> {
    // SAFETY: with no buffer, getfsstat(2) only counts.
    let count = Errno::result(unsafe { libc::getfsstat(std::ptr::null_mut(), 0, libc::MNT_NOWAIT) })?;
    // Room for what is mounted meanwhile.
    let mut mounts: Vec<libc::statfs> = Vec::with_capacity(usize::try_from(count).unwrap_or(0) + 16);
    let bytes =
        libc::c_long::try_from(mounts.capacity() * size_of::<libc::statfs>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the buffer has `bytes` bytes.
    let filled = Errno::result(unsafe { libc::getfsstat(mounts.as_mut_ptr(), bytes, libc::MNT_NOWAIT) })?;
    // SAFETY: the kernel filled that many elements, never more than there is room for.
    unsafe { mounts.set_len(usize::try_from(filled).unwrap_or(0).min(mounts.capacity())) };
    let places = mounts.iter().rev().map(|mount| {
        // SAFETY: the kernel terminates f_mntonname within its array.
        let name = unsafe { CStr::from_ptr(mount.f_mntonname.as_ptr()) };
        PathBuf::from(OsStr::from_bytes(name.to_bytes()))
    });
    Ok(places.filter(|place| place != dir && place.starts_with(dir)).collect())
}
