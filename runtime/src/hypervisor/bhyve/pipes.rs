//! Where bhyve's output goes: named pipes that it holds open itself.
//!
//! bhyve ends by SIGPIPE when nobody reads what it writes, and blocks a virtual CPU when the reader is slow. A named
//! pipe that bhyve has open for reading, too, and without blocking, does neither: what nobody reads is dropped, and a
//! successor of this process can open it again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe;

use crate::hypervisor::HypervisorError;

/// A pipe's writing end, for bhyve, and its reading end.
pub(super) struct Output {
    /// Open for reading and writing.
    pub(super) writer: File,
    pub(super) reader: pipe::Receiver,
}

/// Makes a named pipe at `path`.
pub(super) fn output(path: &Path) -> Result<Output, HypervisorError> {
    let make = || {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
        let writer = options.open(path)?;
        let reader = pipe::OpenOptions::new().open_receiver(path)?;
        Ok(Output { writer, reader })
    };
    make().map_err(error("make the pipe", path))
}

/// An input on which nothing ever comes, not even an end, as long as its reader also holds the second descriptor.
pub(super) fn silence() -> Result<(OwnedFd, OwnedFd), HypervisorError> {
    let (reader, writer) = io::pipe().map_err(error("make a pipe for", Path::new("bhyve's input")))?;
    Ok((reader.into(), writer.into()))
}

fn error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> HypervisorError + use<'a> {
    let path: PathBuf = path.to_owned();
    move |source| HypervisorError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_writer_survives_its_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let Output { mut writer, mut reader } = output(&path).unwrap();
        writer.write_all(b"one").unwrap();
        let mut buffer = [0; 3];
        reader.read_exact(&mut buffer).await.unwrap();
        drop(reader);
        // Nobody reads: no signal, no wait, and at last a refusal.
        let refusal = loop {
            if let Err(e) = writer.write_all(&[b'x'; 512]) {
                break e;
            }
        };
        assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock);
        let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        reader.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"xxx");
        drop(writer);
        reader.read_to_end(&mut Vec::new()).await.unwrap();
    }
}
