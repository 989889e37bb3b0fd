//! The shim's log goes to the FIFO `log` in the bundle, which containerd copies into its own.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::Arc,
};

use skep::config::LogLevel;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Writes lines without ever waiting for a reader: what does not fit is lost.
#[derive(Debug, Clone)]
struct Fifo(Option<Arc<Ends>>);

#[derive(Debug)]
struct Ends {
    writer: OwnedFd,
    /// So that writing is possible whether or not containerd is running.
    _reader: fs::File,
}

impl Fifo {
    fn open(path: &Path) -> io::Result<Self> {
        // Not created: without containerd's reader nobody would read it.
        if !fs::symlink_metadata(path)?.file_type().is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a FIFO"));
        }
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let reader = fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
        let writer = fs::OpenOptions::new().write(true).custom_flags(nonblocking).open(path)?;
        Ok(Self(Some(Arc::new(Ends { writer: writer.into(), _reader: reader }))))
    }
}

impl io::Write for Fifo {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(ends) = &self.0 {
            let _ = rustix::io::write(&ends.writer, line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Fifo {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Starts logging to the FIFO at `path`; without one, nowhere.
pub(crate) fn start(path: &Path, level: LogLevel) {
    let fifo = Fifo::open(path).unwrap_or(Fifo(None));
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(fifo).init();
    // Standard error leads nowhere in a shim.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn a_full_fifo_never_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut fifo = Fifo::open(&path).unwrap();
        fifo.write_all(b"first\n").unwrap();
        let line = [b'x'; 1000];
        for _ in 0..200 {
            fifo.write_all(&line).unwrap();
        }
        let mut reader = fs::File::open(&path).unwrap();
        let mut start = [0; 6];
        reader.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"first\n");
    }

    #[test]
    fn only_a_fifo_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        Fifo::open(&path).unwrap_err();
        fs::write(&path, "").unwrap();
        Fifo::open(&path).unwrap_err();
    }
}
