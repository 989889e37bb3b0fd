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

use crate::error::Refusal;
use crate::os::console::{Severity, say};
use crate::os::machine;

/// Starts every fatal message; the host looks for it.
const PREFIX: &str = "skep-agent: fatal: ";

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
            say(Severity::Error, &format!("skep-agent: {text}"));
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
    say(Severity::Fatal, &format!("{PREFIX}{reason}"));
    reset()
}

fn reset() -> ! {
    let error = machine::reset();
    // Only a process without the right to reset gets here. The end of PID 1 panics the kernel, which resets.
    say(Severity::Fatal, &format!("skep-agent: cannot reset: {error}"));
    std::process::abort()
}
