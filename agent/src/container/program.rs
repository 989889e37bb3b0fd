//! The user's program, from its name in the spec to exec, and what it finds around it. All of this runs in the
//! container, in the process that becomes it.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, IsTerminal as _, Read as _};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd as _, RawFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::lookup;
use crate::error::Refusal;

/// A program that was found.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    args: Vec<String>,
    env: Vec<String>,
    uid: u32,
    file: PathBuf,
}

/// A program that only has to be run: what is left to do takes one system call.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    program: &'a Program,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds the program as its user, in its working directory.
    pub(crate) fn find(args: Vec<String>, env: Vec<String>, uid: u32) -> Result<Self, Refusal> {
        let file = lookup::find(args.first().map(String::as_str).unwrap_or_default(), &env, uid)?;
        Ok(Self { args, env, uid, file })
    }

    /// Puts everything in the form that exec takes.
    pub(crate) fn ready(&self) -> Result<Ready<'_>, Refusal> {
        let string = |text: &str| {
            CString::new(text).map_err(|_| Refusal::invalid(format!("{text:?}: contains a NUL byte")))
        };
        let args = self.args.iter().map(|arg| string(arg)).collect::<Result<Vec<_>, _>>()?;
        let mut env = self.env.iter().map(|entry| string(entry)).collect::<Result<Vec<_>, _>>()?;
        if !self.env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(string(&format!("HOME={}", home(self.uid)))?);
        }
        Ok(Ready { program: self, path: string(&self.file.to_string_lossy())?, args, env })
    }
}

impl Ready<'_> {
    /// Gives the process over to the program.
    pub(crate) fn run(&self) -> Result<Infallible, Refusal> {
        let Err(error) = nix::unistd::execve(&self.path, &self.args, &self.env);
        let command = self.program.args.first().map(String::as_str).unwrap_or_default();
        Err(lookup::exec_failed(&self.program.file, command, error))
    }
}

/// Enters the working directory as root; it is made if the image has none. False: root may not.
pub(crate) fn enter_cwd(cwd: &Path) -> Result<bool, Refusal> {
    let enter = || std::env::set_current_dir(cwd);
    let result = match enter() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(cwd).and_then(|()| enter())
        }
        other => other,
    };
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(cwd_fault(cwd, &error)),
    }
}

/// Enters the working directory as the user, if it was not entered before, and makes sure that it is within the
/// container.
pub(crate) fn settle_cwd(cwd: &Path, entered: bool) -> Result<(), Refusal> {
    if !entered {
        // What root may not enter (a user's directory over the network, say) its user may.
        std::env::set_current_dir(cwd).map_err(|e| cwd_fault(cwd, &e))?;
    }
    // A directory outside the container has no path in it.
    if std::env::current_dir().is_ok_and(|dir| dir.is_absolute()) {
        return Ok(());
    }
    Err(Refusal::invalid(format!("process.cwd {}: not within the container", cwd.display())))
}

fn cwd_fault(cwd: &Path, error: &io::Error) -> Refusal {
    Refusal::invalid(format!("process.cwd {}: {error}", cwd.display()))
}

/// This process's standard descriptors.
pub(crate) fn stdio() -> [(RawFd, ManuallyDrop<std::fs::File>); 3] {
    [0, 1, 2].map(|fd| {
        // SAFETY: 0 to 2 are this process's own, open for its whole life and not closed here.
        (fd, ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) }))
    })
}

/// Makes the user the owner of its pipes or terminal, so that it can open /dev/stdout anew.
pub(crate) fn own_stdio(uid: u32) {
    for (_, file) in stdio() {
        // /dev/null is everybody's.
        let shared =
            |metadata: &std::fs::Metadata| metadata.file_type().is_char_device() && !file.is_terminal();
        let foreign = file.metadata().is_ok_and(|metadata| !shared(&metadata) && metadata.uid() != uid);
        if foreign {
            // What cannot change its owner can still be used as it is.
            let _ = nix::unistd::fchown(&*file, Some(Uid::from_raw(uid)), None);
        }
    }
}

/// The user's home as the image has it, or the root directory.
fn home(uid: u32) -> String {
    const PASSWD_MAX: u64 = 1 << 20;
    let mut passwd = String::new();
    let read =
        std::fs::File::open("/etc/passwd").and_then(|file| file.take(PASSWD_MAX).read_to_string(&mut passwd));
    read.ok().and_then(|_| home_in(&passwd, uid)).unwrap_or_else(|| "/".to_owned())
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let same = fields.nth(2)?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (same && !home.is_empty()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_is_the_images() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# odd line\nweb:x:33:33::/var/www:\nnone:x:4:4:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_in(passwd, 4), None);
        assert_eq!(home_in(passwd, 1000), None);
    }
}
