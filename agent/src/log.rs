//! Lines of the log on the guest's console, for whoever reads it on the host.
//!
//! A console is slow (each byte leaves the VM on its own), so little is said unless `skep.log=` asks for it.
//! libcontainer tells the log what its errors leave out, so what it logs while it makes a process goes to the
//! pipe on which that process's faults are told.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

/// The console's descriptor: out of the way of those that helpers are given, which log as well.
pub(crate) const FD: RawFd = 511;

/// Lines told about one process; the pipe must take them all while nobody reads.
const TOLD_MAX: u32 = 16;
/// Longest line told.
const TOLD_LENGTH: usize = 1024;

static FAULTS: AtomicI32 = AtomicI32::new(-1);
static TOLD: AtomicU32 = AtomicU32::new(0);

/// Events as lines; spans are not followed.
struct Console {
    level: Level,
    out: File,
}

/// Sends the log to the console from here on. A guest without a console logs nothing.
pub(crate) fn install(level: Level) {
    let Ok(console) = std::fs::OpenOptions::new().write(true).open("/dev/console") else { return };
    let console = console.into_raw_fd();
    // SAFETY: dup3 onto a number that nothing of this program has.
    if unsafe { libc::dup3(console, FD, libc::O_CLOEXEC) } == FD {
        // SAFETY: dup3 made the descriptor just now, and it stays open for good.
        let out = unsafe { File::from_raw_fd(FD) };
        // Only a second call could fail, and there is one.
        let _ = tracing::subscriber::set_global_default(Console { level, out });
    }
    // SAFETY: taken out of its File above, so nothing else owns it.
    unsafe { libc::close(console) };
}

/// From here on errors are told to the fault pipe of the process being made, too.
#[cfg(target_os = "linux")]
pub(crate) fn tell_faults(pipe: RawFd) {
    FAULTS.store(pipe, Ordering::Relaxed);
}

impl Console {
    fn prints(&self, metadata: &Metadata<'_>) -> bool {
        // What fails in libcontainer is an answer to the host: its own account is for whoever looks closer.
        let foreign = !metadata.target().starts_with("skep");
        *metadata.level() <= self.level && !(foreign && self.level < Level::INFO)
    }
}

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let told = *metadata.level() == Level::ERROR && FAULTS.load(Ordering::Relaxed) != -1;
        metadata.is_event() && (told || self.prints(metadata))
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // What is told changes when a process is made.
        if metadata.is_event() { Interest::sometimes() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut line = Line(String::new());
        event.record(&mut line);
        if self.prints(metadata) {
            let line = format!("skep-agent: {} {}:{}\n", metadata.level(), metadata.target(), line.0);
            // A console that fails leaves nowhere to say so.
            let _ = (&self.out).write_all(line.as_bytes());
        }
        if *metadata.level() == Level::ERROR {
            tell(&line.0);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Tells the fault pipe, if a process is being made.
fn tell(text: &str) {
    let pipe = FAULTS.load(Ordering::Relaxed);
    if pipe == -1 || TOLD.fetch_add(1, Ordering::Relaxed) >= TOLD_MAX {
        return;
    }
    let line: String =
        text.trim_start().chars().take(TOLD_LENGTH).map(|c| if c == '\n' { ' ' } else { c }).collect();
    // SAFETY: the pipe belongs to the process being made, which is this one, and is not closed here.
    let mut pipe = ManuallyDrop::new(unsafe { File::from_raw_fd(pipe) });
    // Without a reader there is nobody to tell.
    let _ = pipe.write_all(format!("{line}\n").as_bytes());
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, " {value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}
