//! The kernel's log and console, for the last words of an agent.

use std::io::Write as _;

/// A record of the kernel's log is at most about 1 KiB, prefix included.
const MESSAGE_MAX: usize = 900;

/// How bad it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Severity {
    /// Printed however quiet the kernel was told to be.
    Fatal,
    Error,
}

/// Says `message` where the host finds it.
pub(crate) fn say(severity: Severity, message: &str) {
    let priority = match severity {
        Severity::Fatal => '0',
        Severity::Error => '3',
    };
    write(&record(priority, message));
}

/// One record for /dev/kmsg: one line, bounded, with its priority.
fn record(priority: char, message: &str) -> Vec<u8> {
    let mut line = message.replace('\n', "; ");
    if line.len() > MESSAGE_MAX {
        let cut = (0..=MESSAGE_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(cut);
    }
    format!("<{priority}>{line}\n").into_bytes()
}

fn write(record: &[u8]) {
    // Before devtmpfs is mounted the initramfs has no device nodes: make the one that is needed.
    for path in ["/dev/kmsg", "/.kmsg"] {
        if path == "/.kmsg" {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            let made = mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 11));
            if made.is_err() {
                continue;
            }
        }
        let written =
            std::fs::OpenOptions::new().write(true).open(path).and_then(|mut kmsg| kmsg.write_all(record));
        if written.is_ok() {
            return;
        }
    }
    if let Ok(mut console) = std::fs::OpenOptions::new().write(true).open("/dev/ttyS0") {
        // Nothing is left to try if the last console fails as well.
        let _ = console.write_all(record.get(3..).unwrap_or(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_bounded_line() {
        let long = "ä".repeat(1000);
        let bytes = record('0', &format!("one\ntwo {long}"));
        let text = String::from_utf8(bytes).expect("cut at a character");
        assert!(text.starts_with("<0>one; two ä"));
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.len() <= MESSAGE_MAX + 4);
    }
}
