//! sysctl(3): values whose size is not known before.

use std::ffi::{CStr, c_int};

/// More than any value that is read here: `kern.conftxt` has some 20 KiB, an environment at most 512 KiB.
const MOST: usize = 1 << 20;

/// An integer of 4 or 8 bytes.
pub(super) fn integer(name: &CStr) -> Option<u64> {
    let bytes = value(name)?;
    match bytes.len() {
        4 => Some(u32::from_ne_bytes(bytes.try_into().ok()?).into()),
        8 => Some(u64::from_ne_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// A text.
pub(super) fn text(name: &CStr) -> Option<String> {
    Some(String::from_utf8_lossy(&value(name)?).trim_end_matches('\0').to_owned())
}

/// `kern.proc.<what>.<pid>`: one of `KERN_PROC_*`, `sys/sysctl.h`.
pub(super) fn of_process(what: c_int, pid: u32) -> Option<Vec<u8>> {
    let mib = [libc::CTL_KERN, libc::KERN_PROC, what, c_int::try_from(pid).ok()?];
    read(&mib)
}

fn value(name: &CStr) -> Option<Vec<u8>> {
    let mut mib = [0 as c_int; libc::CTL_MAXNAME as usize];
    let mut length = mib.len();
    // SAFETY: `name` is terminated; `mib` has `length` elements, and `length` is told how many were filled.
    if unsafe { libc::sysctlnametomib(name.as_ptr(), mib.as_mut_ptr(), &raw mut length) } != 0 {
        return None;
    }
    read(mib.get(..length)?)
}

fn read(mib: &[c_int]) -> Option<Vec<u8>> {
    let count = u32::try_from(mib.len()).ok()?;
    let mut bytes = vec![0_u8; MOST];
    let mut size = bytes.len();
    // SAFETY: `mib` has `count` elements, the buffer has `size` bytes, and nothing is set.
    let result = unsafe {
        libc::sysctl(mib.as_ptr(), count, bytes.as_mut_ptr().cast(), &raw mut size, std::ptr::null(), 0)
    };
    if result != 0 {
        return None;
    }
    bytes.truncate(size);
    Some(bytes)
}
