//! The kernel's console, for the last words of an agent.

use std::io::Write as _;

/// Longest message.
const MESSAGE_MAX: usize = 900;

/// How bad it is: all of it is said.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Severity {
    Fatal,
    Error,
}

/// Says `message` where the host finds it.
pub(crate) fn say(_: Severity, message: &str) {
    let mut line: String =
        message.chars().map(|c| if c == '\n' { ' ' } else { c }).take(MESSAGE_MAX).collect();
    line.push('\n');
    if let Ok(mut console) = std::fs::OpenOptions::new().write(true).open("/dev/console") {
        // Nothing is left to try if the console fails.
        let _ = console.write_all(line.as_bytes());
    }
}
