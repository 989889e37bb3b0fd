//! Finding a command in the container, with errors that say what is wrong with it.
//!
//! Runs inside the container as its user, so paths mean what they will mean to `execve`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use crate::error::{Code, Refusal};

/// Where commands are looked for if the process has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command cannot be run. Clients tell the kinds apart by words of Go's and the C library's, which runc passes on:
/// Docker makes exit code 127 of the first two, 126 of `permission denied`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LookupError {
    #[error("exec {0:?}: executable file not found in $PATH ({1})")]
    NotInPath(String, String),
    #[error("exec {0:?}: no such file or directory in the image")]
    NoFile(String),
    #[error("exec {0:?}: is a directory")]
    Directory(String),
    #[error("exec {0:?}: permission denied (not executable for uid {1})")]
    NotExecutable(String, u32),
    #[error(
        "exec {command:?}: exec format error: built for {found}, this guest runs {}; use an image for linux/amd64",
        native()
    )]
    Machine { command: String, found: &'static str },
    #[error("exec {0:?}: {1}")]
    Other(String, String),
}

impl From<LookupError> for Refusal {
    fn from(error: LookupError) -> Self {
        Self::new(Code::InvalidArgument, error.to_string())
    }
}

/// The paths to try for a command, in order.
fn candidates(command: &str, path: &str) -> Vec<PathBuf> {
    if command.contains('/') {
        return vec![PathBuf::from(command)];
    }
    // An empty entry means the working directory, as shells have it.
    path.split(':').map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(command)).collect()
}

/// The file that `command` names, checked as far as can be without running it.
pub(crate) fn find(command: &str, env: &[String], uid: u32) -> Result<PathBuf, LookupError> {
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut first_fault = None;
    for candidate in candidates(command, path) {
        match check(&candidate, command, uid) {
            Ok(()) => return Ok(candidate),
            Err(None) => {}
            // As execvp: what cannot be run is passed over for what can, and remembered.
            Err(Some(fault)) => first_fault = first_fault.or(Some(fault)),
        }
    }
    Err(first_fault.unwrap_or_else(|| {
        if command.contains('/') {
            LookupError::NoFile(command.to_owned())
        } else {
            LookupError::NotInPath(command.to_owned(), path.to_owned())
        }
    }))
}

/// `Err(None)`: there is no such file.
fn check(file: &Path, command: &str, uid: u32) -> Result<(), Option<LookupError>> {
    let metadata = match std::fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(None);
        }
        Err(error) => return Err(Some(LookupError::Other(command.to_owned(), error.to_string()))),
    };
    if metadata.is_dir() {
        return Err(Some(LookupError::Directory(command.to_owned())));
    }
    if faccessat(AT_FDCWD, file, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_err() {
        return Err(Some(LookupError::NotExecutable(command.to_owned(), uid)));
    }
    // A program may be executable and not readable; then exec itself has to find out.
    let mut head = [0; 20];
    let readable = File::open(file).and_then(|mut opened| opened.read_exact(&mut head));
    match readable.ok().and_then(|()| foreign_machine(&head)) {
        Some(found) => Err(Some(LookupError::Machine { command: command.to_owned(), found })),
        None => Ok(()),
    }
}

/// The name of this guest's architecture.
fn native() -> &'static str {
    std::env::consts::ARCH
}

/// The architecture of an ELF program that this guest cannot run; `None` for everything else.
fn foreign_machine(head: &[u8; 20]) -> Option<&'static str> {
    let (magic, rest) = head.split_first_chunk::<4>()?;
    if magic != b"\x7fELF" {
        return None;
    }
    let field = [*rest.get(14)?, *rest.get(15)?];
    let machine = if rest.get(1) == Some(&2) { u16::from_be_bytes(field) } else { u16::from_le_bytes(field) };
    // e_machine of the ELF specification's registry.
    let name = match machine {
        3 => "x86",
        8 => "mips",
        20 => "powerpc",
        21 => "powerpc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        258 => "loongarch",
        _ => "another machine",
    };
    // 32-bit x86 programs run on a kernel built for them, which only exec can tell.
    (name != native() && name != "x86").then_some(name)
}

/// What `execve` meant by its error, which it does not say well for a missing interpreter.
pub(crate) fn exec_failed(file: &Path, command: &str, error: nix::Error) -> Refusal {
    let text = match (error, interpreter(file)) {
        (nix::Error::ENOENT, Some(interpreter)) => {
            format!("exec {command:?}: its interpreter {interpreter:?} is not in the image")
        }
        (nix::Error::ENOENT, None) => {
            format!("exec {command:?}: its dynamic loader is not in the image")
        }
        (error, _) => format!("exec {command:?}: {}", error.desc()),
    };
    Refusal::invalid(text)
}

/// The interpreter named in a script's first line.
fn interpreter(file: &Path) -> Option<String> {
    let mut head = Vec::new();
    File::open(file).ok()?.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    String::from_utf8_lossy(line).split_ascii_whitespace().next().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(class: u8, order: u8, machine: [u8; 2]) -> [u8; 20] {
        let mut head = [0; 20];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
        head[18..].copy_from_slice(&machine);
        head
    }

    #[test]
    fn only_foreign_programs_are_foreign() {
        assert_eq!(foreign_machine(&elf(2, 1, [183, 0])), Some("aarch64"));
        assert_eq!(foreign_machine(&elf(2, 2, [0, 22])), Some("s390x"));
        assert_eq!(foreign_machine(&elf(2, 1, [62, 0])), None);
        assert_eq!(foreign_machine(&elf(1, 1, [3, 0])), None);
        assert_eq!(foreign_machine(b"#!/bin/sh\necho hello"), None);
    }

    #[test]
    fn a_bare_name_is_tried_along_path() {
        assert_eq!(candidates("sh", "/a::/b"), ["/a/sh", "./sh", "/b/sh"].map(PathBuf::from));
        assert_eq!(candidates("bin/sh", "/a"), [PathBuf::from("bin/sh")]);
    }

    #[test]
    fn errors_name_the_command_and_the_fault() {
        let env = ["PATH=/nowhere:/bin".to_owned()];
        assert!(find("sh", &env, 0).is_ok());
        let text = |command: &str| find(command, &env, 7).expect_err(command).to_string();
        assert_eq!(text("no-such"), "exec \"no-such\": executable file not found in $PATH (/nowhere:/bin)");
        assert_eq!(text("/no/such"), "exec \"/no/such\": no such file or directory in the image");
        assert_eq!(text("/bin"), "exec \"/bin\": is a directory");
        let plain = std::env::temp_dir().join(format!("skep-agent-plain-{}", std::process::id()));
        std::fs::write(&plain, "").expect("write");
        let plain_text = text(&plain.to_string_lossy());
        std::fs::remove_file(&plain).expect("clean");
        assert_eq!(
            plain_text,
            format!("exec \"{}\": permission denied (not executable for uid 7)", plain.display())
        );
    }

    #[test]
    fn the_last_path_counts_and_a_missing_one_is_the_usual() {
        let two = ["PATH=/nowhere".to_owned(), "PATH=/bin".to_owned()];
        assert_eq!(find("sh", &two, 0), Ok(PathBuf::from("/bin/sh")));
        assert!(find("sh", &[], 0).is_ok());
    }

    #[test]
    fn a_missing_interpreter_is_named() {
        let script = std::env::temp_dir().join(format!("skep-agent-script-{}", std::process::id()));
        std::fs::write(&script, "#!/no/such/shell -e\n").expect("write");
        let refusal = exec_failed(&script, "run.sh", nix::Error::ENOENT);
        std::fs::remove_file(&script).expect("clean");
        assert_eq!(
            refusal.message,
            "exec \"run.sh\": its interpreter \"/no/such/shell\" is not in the image"
        );
    }
}
