//! System calls that have no safe wrapper: ioctl(2), sysctl(3), kldload(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};

use crate::error::Error;

// sys/ioccom.h: direction in the top bits, then length, group and number.
const IN: u64 = 0x8000_0000;
const OUT: u64 = 0x4000_0000;
const VOID: u64 = 0x2000_0000;

const fn request(direction: u64, group: u8, number: u8, len: usize) -> u64 {
    direction | ((len as u64 & 0x1fff) << 16) | ((group as u64) << 8) | number as u64
}

/// `_IOW`
pub const fn iow<T>(group: u8, number: u8) -> u64 {
    request(IN, group, number, size_of::<T>())
}

/// `_IOWR`
pub const fn iowr<T>(group: u8, number: u8) -> u64 {
    request(IN | OUT, group, number, size_of::<T>())
}

/// `_IOR`
pub const fn ior<T>(group: u8, number: u8) -> u64 {
    request(OUT, group, number, size_of::<T>())
}

/// `_IO`
pub const fn io_plain(group: u8, number: u8) -> u64 {
    request(VOID, group, number, 0)
}

/// Calls ioctl(2) with the structure that `request` was made for.
pub fn ioctl<T>(file: &impl AsRawFd, request: u64, argument: &mut T) -> io::Result<()> {
    let len = (request >> 16) & 0x1fff;
    if request & (IN | OUT) != 0 && len != size_of::<T>() as u64 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the kernel reads and writes as many bytes as the request says, which was just compared with the length
    // of what `argument` points to.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket that is closed on exec.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A failure of the kernel at doing `what`.
pub fn kernel(what: impl Into<String>, error: io::Error) -> Error {
    Error::Kernel { what: what.into(), error }
}

/// Fine, if it failed for this reason.
pub fn allow(result: io::Result<()>, errno: i32) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        result => result,
    }
}

fn text(name: &str) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The value of an integer setting.
pub fn sysctl(name: &str) -> io::Result<i32> {
    let name = text(name)?;
    let (mut value, mut len) = (0_i32, size_of::<i32>());
    // SAFETY: name is a C string; value has room for `len` bytes and nothing is written.
    let result = unsafe {
        libc::sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &raw mut len, std::ptr::null(), 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Makes sure that an integer setting has a value.
pub fn set_sysctl(setting: &str, value: i32) -> Result<(), Error> {
    let failed = |error| kernel(format!("set {setting} to {value}"), error);
    if sysctl(setting).map_err(failed)? == value {
        return Ok(());
    }
    let name = text(setting).map_err(failed)?;
    // SAFETY: name is a C string; four bytes are read from value and nothing is written.
    let result = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw const value).cast(),
            size_of::<i32>(),
        )
    };
    if result < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(()) }
}

/// Runs `work` and interrupts a system call in it that takes longer than `limit`; such a call fails with `EINTR`. The
/// process must have no other use for SIGALRM, and no other thread.
pub fn interruptible<T>(limit: std::time::Duration, work: impl FnOnce() -> T) -> T {
    extern "C" fn nothing(_: libc::c_int) {}
    let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX).max(1);
    // SAFETY: a sigaction is plain data, for which all zeroes is a value; the handler does nothing. Without SA_RESTART
    // calls end.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        libc::alarm(seconds);
    }
    let result = work();
    // SAFETY: no pointers.
    unsafe { libc::alarm(0) };
    result
}

/// Loads a kernel module unless it is there. Whether that helped, the first use of it tells: in a jail nothing can be
/// loaded, and what is compiled in need not be.
pub fn load_module(name: &str) {
    unsafe extern "C" {
        // kldload(2), of sys/linker.h
        fn kldload(file: *const libc::c_char) -> libc::c_int;
    }
    if let Ok(name) = text(name) {
        // SAFETY: name is a C string.
        unsafe { kldload(name.as_ptr()) };
    }
}
