//! The end of the guest when the agent cannot go on: say why on the console, then reset the machine.
//!
//! PID 1 must neither return nor hang. The message goes to the kernel's log at the level that is printed
//! however quiet the kernel was told to be; the reset ends the VM, and the host finds the reason in its copy
//! of the console. What cannot be caught here (a fault in the agent) panics the kernel, which resets too
//! (`panic=-1`).

use std::fs::File;
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd as _, RawFd};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::sys::reboot::{RebootMode, reboot};

use crate::error::Refusal;

/// Starts every fatal message; the host looks for it.
const PREFIX: &str = "skep-agent: fatal: ";
/// A record of the kernel's log is at most about 1 KiB, prefix included.
const MESSAGE_MAX: usize = 900;

/// Set in forked children, which must never reset the machine.
static IN_CHILD: AtomicBool = AtomicBool::new(false);
/// Where a child's last word goes.
static ANSWER: AtomicI32 = AtomicI32::new(-1);

/// Makes a panic of PID 1 a reset with a reason.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = payload(info);
        if IN_CHILD.load(Ordering::Relaxed) {
            let text = format!("a helper process of the agent panicked at {place}: {text}");
            say(&record('3', &format!("skep-agent: {text}")));
            answer(&Refusal::internal(text));
        } else {
            die(&format!("panicked at {place}: {text}"));
        }
    }));
}

fn payload<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

/// Marks this process as a child of PID 1: its panics are its own.
pub(crate) fn enter_child() {
    IN_CHILD.store(true, Ordering::Relaxed);
}

/// In a child: a panic is answered on this descriptor, as the failure of what the child was to do.
pub(crate) fn answer_on(pipe: RawFd) {
    ANSWER.store(pipe, Ordering::Relaxed);
}

fn answer(refusal: &Refusal) {
    let pipe = ANSWER.load(Ordering::Relaxed);
    let Ok(mut line) = serde_json::to_vec(&Err::<(), _>(refusal)) else { return };
    line.push(b'\n');
    if pipe != -1 {
        // SAFETY: the pipe is this process's own for its whole life, and not closed here.
        let mut pipe = ManuallyDrop::new(unsafe { File::from_raw_fd(pipe) });
        // Without a reader there is nobody to answer.
        let _ = pipe.write_all(&line);
    }
}

/// Says `reason` on the console and resets the machine.
pub(crate) fn die(reason: &str) -> ! {
    say(&record('0', &format!("{PREFIX}{reason}")));
    reset()
}

fn reset() -> ! {
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    // Only a process without the right to reset gets here. The end of PID 1 panics the kernel, which resets.
    say(&record('0', &format!("skep-agent: cannot reset: {error}")));
    std::process::abort()
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

fn say(record: &[u8]) {
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
