//! Lines of the log on the guest's console, for whoever reads it on the host.
//!
//! A console is slow (each byte leaves the VM on its own), so little is said unless `skep.log=` asks for it.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Events as lines; spans are not followed.
struct Console {
    level: Level,
    out: File,
}

/// Sends the log to the console from here on. A guest without a console logs nothing.
pub(crate) fn install(level: Level) {
    if let Ok(out) = std::fs::OpenOptions::new().write(true).open("/dev/console") {
        // Only a second call could fail, and there is one.
        let _ = tracing::subscriber::set_global_default(Console { level, out });
    }
}

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
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
        let mut line = Line(format!("skep-agent: {} {}:", event.metadata().level(), event.metadata().target()));
        event.record(&mut line);
        line.0.push('\n');
        // A console that fails leaves nowhere to say so.
        let _ = (&self.out).write_all(line.0.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
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
