//! A first process for the guest's kernel that does next to nothing: it says something and ends in a chosen way.
//!
//! By it a kernel's own time to its first process is measured, and the runtime meets guests that are not its own.

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

use crate::elf;

/// What the first process does when it has said its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It sleeps for ever.
    Hang,
    /// It exits with status 3, which the kernel takes as a reason to panic.
    Exit,
}

/// The file type bits of a directory, a character device and a regular file (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;

/// An uncompressed initramfs with nothing but such a process and the console that it writes to.
pub fn initramfs(message: &str, ending: Ending) -> Result<Vec<u8>> {
    archive(&[("init", &program(message, ending)?)])
}

/// One whose first process is busybox' shell, which runs `script`.
pub fn shell(busybox: &[u8], script: &str) -> Result<Vec<u8>> {
    archive(&[("busybox", busybox), ("init", format!("#!/busybox sh\n{script}\n").as_bytes())])
}

/// These programs and the console.
fn archive(programs: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    let mut entries = vec![
        (Builder::new("dev").mode(DIRECTORY | 0o755), &[][..]),
        // Device 5:1 of Linux' Documentation/admin-guide/devices.txt.
        (Builder::new("dev/console").mode(CHARACTER_DEVICE | 0o600).rdev_major(5).rdev_minor(1), &[][..]),
    ];
    entries.extend(programs.iter().map(|(name, bytes)| (Builder::new(name).mode(REGULAR | 0o755), *bytes)));
    for (number, (builder, content)) in entries.into_iter().enumerate() {
        let builder = builder.ino(u32::try_from(number)? + 1).nlink(1);
        let mut writer = builder.write(&mut archive, u32::try_from(content.len())?);
        std::io::Write::write_all(&mut writer, content)?;
        writer.finish().context("ending an entry of an initramfs")?;
    }
    trailer(&mut archive).context("ending an initramfs")?;
    Ok(archive)
}

/// The process as a static program for x86-64, position-independent, without memory of its own.
fn program(message: &str, ending: Ending) -> Result<Vec<u8>> {
    let message = format!("{message}\n");
    let mut tail = Assembler::default();
    match ending {
        Ending::Hang => {
            tail.set_eax(34).syscall(); // pause()
            tail.0.extend([0xeb, 0xf7]); // jmp to the beginning: back over 5 + 2 + 2 bytes
        }
        Ending::Exit => {
            tail.set_eax(60).set_edi(3).syscall(); // exit(3)
        }
    }
    let mut code = Assembler::default();
    // write(1, message, length)
    code.set_eax(1).set_edi(1).set_edx(u32::try_from(message.len())?);
    // The message follows the code: after this instruction come a syscall of 2 bytes and the ending.
    code.set_rsi_relative(u32::try_from(2 + tail.0.len())?).syscall();
    code.0.extend(tail.0);
    code.0.extend(message.into_bytes());
    Ok(elf::executable(elf::Machine::X86_64, &code.0))
}

/// The few instructions that are needed (Intel SDM volume 2).
#[derive(Default)]
struct Assembler(Vec<u8>);

impl Assembler {
    fn set_eax(&mut self, value: u32) -> &mut Self {
        self.immediate(&[0xb8], value)
    }

    fn set_edi(&mut self, value: u32) -> &mut Self {
        self.immediate(&[0xbf], value)
    }

    fn set_edx(&mut self, value: u32) -> &mut Self {
        self.immediate(&[0xba], value)
    }

    /// `lea rsi, [rip + distance]`, from the end of the instruction.
    fn set_rsi_relative(&mut self, distance: u32) -> &mut Self {
        self.immediate(&[0x48, 0x8d, 0x35], distance)
    }

    fn syscall(&mut self) -> &mut Self {
        self.0.extend([0x0f, 0x05]);
        self
    }

    fn immediate(&mut self, operation: &[u8], value: u32) -> &mut Self {
        self.0.extend(operation);
        self.0.extend(value.to_le_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;
    use crate::process::{Input, LIMIT, Running, wait_for};

    fn start(ending: Ending) -> (tempfile::TempDir, Running) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("init");
        fs::write(&path, program("hello from afar", ending).unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let running = Running::spawn(Command::new(path), Input::Empty).unwrap();
        (directory, running)
    }

    #[test]
    fn it_speaks_and_exits() {
        let (_directory, running) = start(Ending::Exit);
        let output = running.wait(LIMIT).unwrap();
        assert_eq!((output.code(), output.out().as_str()), (3, "hello from afar\n"));
    }

    #[test]
    fn it_speaks_and_hangs() {
        let (_directory, running) = start(Ending::Hang);
        wait_for("its words", LIMIT, || Ok(running.first_output())).unwrap();
        let error = format!("{:#}", running.wait(std::time::Duration::from_millis(300)).unwrap_err());
        assert!(error.contains("did not end") && error.contains("hello from afar"), "{error}");
    }

    #[test]
    fn the_initramfs_is_read_back() {
        let archive = initramfs("x", Ending::Hang).unwrap();
        let mut rest = archive.as_slice();
        let mut names = Vec::new();
        loop {
            let reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        let expected = [("dev", 0o040_755), ("dev/console", 0o020_600), ("init", 0o100_755)];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }
}
