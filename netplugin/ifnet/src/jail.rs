//! Working inside a vnet jail.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::sys::{allow, kernel};

/// How long work inside a jail may take: a few system calls.
const PATIENCE: Duration = Duration::from_secs(20);

/// A jail with a network stack of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jail {
    name: String,
    /// Its number.
    pub id: i32,
}

/// A failure inside, on its way out.
#[derive(Serialize, Deserialize)]
struct Failure {
    what: String,
    errno: Option<i32>,
}

impl Jail {
    /// Finds a jail by its name or number.
    pub fn open(name: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Jail { name: name.to_owned(), why: why.to_owned() };
        if name.is_empty() || name == "0" {
            return Err(wrong("is no jail"));
        }
        // jail(2): `vnet` is 1 (new) where the jail has a stack of its own. A number is a jail's name too.
        let text = CString::new(name).map_err(|_| wrong("is no jail's name"))?;
        let mut vnet = 0_i32;
        let part =
            |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut number = name.parse::<i32>().unwrap_or(0);
        let mut parts = [
            part(b"name\0"),
            part(text.as_bytes_with_nul()),
            part(b"vnet\0"),
            libc::iovec { iov_base: (&raw mut vnet).cast(), iov_len: size_of::<i32>() },
        ];
        if number != 0 {
            parts[0] = part(b"jid\0");
            parts[1] = libc::iovec { iov_base: (&raw mut number).cast(), iov_len: size_of::<i32>() };
        }
        // SAFETY: every part points to memory that lives until the call returns; only `vnet` is written to, which is as
        // long as told.
        let id = unsafe { libc::jail_get(parts.as_mut_ptr(), 4, 0) };
        if id < 0 {
            let error = io::Error::last_os_error();
            return Err(wrong(&match error.raw_os_error() {
                Some(libc::ENOENT) => "there is no such jail".to_owned(),
                _ => error.to_string(),
            }));
        }
        if vnet != libc::JAIL_SYS_NEW {
            return Err(wrong("is a jail without a network stack of its own (vnet)"));
        }
        Ok(Self { name: name.to_owned(), id })
    }

    /// Makes a jail that has nothing but a network stack of its own, and stays until it is removed.
    pub fn create(name: &str) -> Result<Self, Error> {
        let failed = |error| kernel(format!("make jail {name}"), error);
        let text = CString::new(name).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let mut vnet = libc::JAIL_SYS_NEW;
        let part =
            |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut parts = [
            part(b"name\0"),
            part(text.as_bytes_with_nul()),
            part(b"path\0"),
            part(b"/\0"),
            part(b"vnet\0"),
            libc::iovec { iov_base: (&raw mut vnet).cast(), iov_len: size_of::<i32>() },
            part(b"persist\0"),
            nothing,
        ];
        // SAFETY: every part points to memory that lives until the call returns and is as long as told; a setting
        // without a value has none.
        let id = unsafe { libc::jail_set(parts.as_mut_ptr(), 8, libc::JAIL_CREATE) };
        if id < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(Self { name: name.to_owned(), id }) }
    }

    /// Removes it, with what runs inside.
    pub fn remove(&self) -> Result<(), Error> {
        // SAFETY: no pointers.
        let result =
            if unsafe { libc::jail_remove(self.id) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        allow(result, libc::EINVAL).map_err(|error| kernel(format!("remove jail {}", self.name), error))
    }

    /// Its name, as it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` inside, in a process of its own: a jail is entered for good. It has only the thread that forks, so
    /// `work` must not wait for others.
    pub fn run<T: Serialize + DeserializeOwned>(
        &self,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let failed = |error: io::Error| kernel(format!("work inside jail {}", self.name), error);
        let (reader, writer) = io::pipe().map_err(failed)?;
        // SAFETY: the child allocates, which FreeBSD's allocator allows after fork(2) in a threaded process, makes
        // system calls, and leaves by _exit.
        let child = unsafe { libc::fork() };
        match child {
            -1 => Err(failed(io::Error::last_os_error())),
            0 => {
                // SAFETY: no pointers.
                let entered = unsafe { libc::jail_attach(self.id) };
                let result = if entered < 0 {
                    Err(kernel("enter the jail", io::Error::last_os_error()))
                } else {
                    work()
                };
                let result = result.map_err(|error| match error {
                    Error::Kernel { what, error } => Failure { what, errno: error.raw_os_error() },
                    other => Failure { what: other.to_string(), errno: None },
                });
                let told = serde_json::to_vec(&result).is_ok_and(|text| (&writer).write_all(&text).is_ok());
                // SAFETY: ends the process at once; nothing of the parent's is flushed or dropped.
                unsafe { libc::_exit(i32::from(!told)) }
            }
            _ => {
                drop(writer);
                // SAFETY: the descriptor is the pipe's own and given up here.
                let answer = read_all(unsafe { OwnedFd::from_raw_fd(reader.into_raw_fd()) });
                if answer.is_err() {
                    // SAFETY: a child of ours that was not waited for yet.
                    unsafe { libc::kill(child, libc::SIGKILL) };
                }
                // SAFETY: see above; nobody wants its status.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                let result: Result<T, Failure> = serde_json::from_slice(&answer.map_err(failed)?)
                    .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
                result.map_err(|Failure { what, errno }| match errno {
                    Some(errno) => kernel(what, io::Error::from_raw_os_error(errno)),
                    None => Error::Inside(what),
                })
            }
        }
    }
}

fn read_all(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(pipe);
    let deadline = Instant::now() + PATIENCE;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&limit)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match file.read(&mut buffer)? {
            0 => return Ok(answer),
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
}
