//! `jail_set(2)` and `jail_get(2)`: parameters by name.

use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;

/// A parameter's value, in the kernel's form.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    /// A switch, on.
    On,
    Number(c_int),
    Text(&'a [u8]),
}

/// `JAIL_SYS_DISABLE`, sys/jail.h: none.
pub(crate) const DISABLE: Value<'_> = Value::Number(0);
/// `JAIL_SYS_NEW`: its own.
pub(crate) const NEW: Value<'_> = Value::Number(1);
/// `JAIL_SYS_INHERIT`: the guest's.
pub(crate) const INHERIT: Value<'_> = Value::Number(2);

/// Longest reason the kernel gives.
const REASON: usize = 1024;

/// Why a jail could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{errno}{}{reason}", if reason.is_empty() { "" } else { ": " })]
pub(crate) struct JailError {
    pub(crate) errno: Errno,
    reason: String,
}

/// Makes a jail that stays without processes; returns its number.
pub(crate) fn create(name: &Path, values: &[(&str, Value<'_>)]) -> Result<c_int, JailError> {
    let mut all = vec![("name", Value::Text(name.as_os_str().as_bytes())), ("persist", Value::On)];
    all.extend(values);
    // SAFETY: the vectors are pairs of a terminated name and a value, alive through the call.
    call(&all, |vectors, count| unsafe { libc::jail_set(vectors, count, libc::JAIL_CREATE) })
}

/// The number of the jail of that name, if there is one.
pub(crate) fn find(name: &Path) -> Result<Option<c_int>, JailError> {
    let name = [("name", Value::Text(name.as_os_str().as_bytes()))];
    // SAFETY: the vectors are pairs of a terminated name and a value, alive through the call.
    match call(&name, |vectors, count| unsafe { libc::jail_get(vectors, count, 0) }) {
        Ok(jid) => Ok(Some(jid)),
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(error),
    }
}

fn call(
    values: &[(&str, Value<'_>)],
    call: impl FnOnce(*mut libc::iovec, u32) -> c_int,
) -> Result<c_int, JailError> {
    let invalid = || JailError { errno: Errno::EINVAL, reason: "a NUL in a parameter".to_owned() };
    let mut buffers: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in values {
        let name = CString::new(*name).map_err(|_| invalid())?.into_bytes_with_nul();
        let value = match value {
            Value::On => Vec::new(),
            Value::Number(number) => number.to_ne_bytes().to_vec(),
            Value::Text(text) => CString::new(*text).map_err(|_| invalid())?.into_bytes_with_nul(),
        };
        buffers.push((name, value));
    }
    // The kernel writes its reason here.
    buffers.push((b"errmsg\0".to_vec(), vec![0; REASON]));
    let mut vectors: Vec<libc::iovec> =
        buffers.iter_mut().flat_map(|(name, value)| [vector(name), vector(value)]).collect();
    let count = u32::try_from(vectors.len()).map_err(|_| invalid())?;
    match Errno::result(call(vectors.as_mut_ptr(), count)) {
        Ok(jid) => Ok(jid),
        Err(errno) => {
            let reason = buffers.last().map(|(_, reason)| reason.as_slice()).unwrap_or_default();
            let reason = reason.split(|byte| *byte == 0).next().unwrap_or_default();
            Err(JailError { errno, reason: String::from_utf8_lossy(reason).into_owned() })
        }
    }
}

fn vector(buffer: &mut Vec<u8>) -> libc::iovec {
    let base = if buffer.is_empty() { std::ptr::null_mut() } else { buffer.as_mut_ptr() };
    libc::iovec { iov_base: base.cast(), iov_len: buffer.len() }
}
