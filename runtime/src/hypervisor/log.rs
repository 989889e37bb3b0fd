//! What a guest and its VMM say: a bounded file, and the last of it in memory.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Most bytes in a log's file. When it is full it becomes `<name>.old`, whose predecessor goes.
const MOST_FILE: usize = 256 << 10;
/// Most bytes in memory.
const MOST_TAIL: usize = 8 << 10;
/// Most lines in an error, and most characters of a line.
const MOST_LINES: usize = 12;
const MOST_COLUMNS: usize = 240;

/// A log of two files of at most 256 KiB.
#[derive(Debug)]
struct BoundedFile {
    path: PathBuf,
    file: File,
    length: usize,
    most: usize,
}

impl BoundedFile {
    fn create(path: &Path, most: usize) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, length: 0, most })
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.length >= self.most {
                let mut old = self.path.clone().into_os_string();
                old.push(".old");
                std::fs::rename(&self.path, old)?;
                self.file = open(&self.path)?;
                self.length = 0;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.most - self.length));
            self.file.write_all(now)?;
            self.length += now.len();
            bytes = later;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path)
}

/// The end of a log, shared between who writes and who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(bytes);
        if tail.len() > MOST_TAIL {
            let surplus = tail.len() - MOST_TAIL;
            tail.drain(..surplus);
        }
    }

    /// The last lines, made harmless to print.
    pub(crate) fn text(&self) -> String {
        harmless(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The last lines of `bytes` with nothing in them that a terminal would act upon.
fn harmless(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            line.chars().filter(|c| *c == '\t' || !c.is_control()).take(MOST_COLUMNS).collect::<String>()
        })
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(MOST_LINES)..].join("\n")
}

/// Reads `from` to its end into the file at `path` and into `tail`. A file that cannot be written ends the file, not
/// the reading: whoever writes to the other end must never block.
pub(crate) async fn record(mut from: impl AsyncRead + Unpin, path: PathBuf, tail: Tail) {
    let mut file = BoundedFile::create(&path, MOST_FILE)
        .inspect_err(|e| tracing::warn!(path = %path.display(), "cannot make the log: {e}"))
        .ok();
    let mut buffer = vec![0; 4096];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) => {
                tracing::warn!(path = %path.display(), "cannot read what is to be logged: {e}");
                return;
            }
        };
        tail.push(&buffer[..n]);
        if let Some(log) = &mut file
            && let Err(e) = log.write(&buffer[..n])
        {
            tracing::warn!(path = %path.display(), "cannot write the log: {e}");
            file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_never_grows_beyond_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = BoundedFile::create(&path, 10).unwrap();
        for chunk in ["abcdefgh", "ijklmnopqrstuvwxyz", "0123"] {
            log.write(chunk.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("log.old")).unwrap(), "klmnopqrst");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "uvwxyz0123");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_tail_is_short_and_harmless() {
        let tail = Tail::default();
        for i in 0..10_000 {
            tail.push(format!("line {i} \x1b[31mred\x07\r\n").as_bytes());
        }
        tail.push(b"\xff\n\n");
        let text = tail.text();
        assert_eq!(text.lines().count(), MOST_LINES);
        assert_eq!(harmless("x".repeat(5000).as_bytes()).len(), MOST_COLUMNS);
        assert!(text.contains("line 9999 [31mred"), "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        assert!(tail.0.lock().unwrap().len() <= MOST_TAIL);
    }

    #[tokio::test]
    async fn reading_goes_on_when_the_file_cannot_be_made() {
        let tail = Tail::default();
        record(&b"said\n"[..], "/nonexistent/dir/log".into(), tail.clone()).await;
        assert_eq!(tail.text(), "said");
    }
}
