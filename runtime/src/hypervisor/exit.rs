//! How and why a VM ended.

use std::fmt;

use tokio::sync::watch;

use super::log::Tail;

/// How a VM ended, with what is known about why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// How.
    pub cause: ExitCause,
    /// The last lines of the guest's console, made harmless to print; may be empty.
    pub console: String,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitCause {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset itself, without saying why.
    Reset,
    /// The guest's agent or kernel gave up and said why on the console.
    Fatal(String),
    /// The host ended it.
    Killed,
    /// The host's kernel ended it for want of memory in its cgroup.
    OutOfMemory {
        /// How little there is, and what to do.
        reason: String,
    },
    /// The program that ran it failed.
    Vmm {
        /// Its exit status or signal.
        status: String,
        /// What it said last.
        message: String,
    },
}

impl VmExit {
    /// Judges by what the guest said: a reset with a last word is that word.
    pub fn with_console(cause: ExitCause, console: String) -> Self {
        let cause = match (cause, last_word(&console)) {
            (ExitCause::Reset | ExitCause::PoweredOff, Some(word)) => ExitCause::Fatal(word),
            (cause, _) => cause,
        };
        Self { cause, console }
    }
}

/// Waits until `exit` is told; without whoever was to tell it, what the VM's `console` said is all that is known.
pub(super) async fn told(exit: &watch::Receiver<Option<VmExit>>, console: &Tail) -> VmExit {
    let mut exit = exit.clone();
    let result = exit.wait_for(Option::is_some).await;
    if let Ok(Some(exit)) = result.as_deref() {
        return exit.clone();
    }
    // Its keeper panicked or the runtime ends.
    let cause = ExitCause::Vmm { status: "its watch has ended".to_owned(), message: String::new() };
    VmExit { cause, console: console.text() }
}

/// What the agent, Linux and FreeBSD begin their last message with.
const LAST_WORDS: [&str; 3] = ["skep-agent: fatal:", "Kernel panic - not syncing:", "panic: "];

/// Longest last word that is passed on.
const MOST_WORD: usize = 512;

/// The first last word: what follows is its consequence (a dead PID 1 panics the kernel).
fn last_word(console: &str) -> Option<String> {
    let line = |line: &str| {
        let start = LAST_WORDS.iter().filter_map(|word| line.find(word)).min()?;
        Some(line[start..].trim_end().chars().take(MOST_WORD).collect())
    };
    console.lines().find_map(line)
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            ExitCause::PoweredOff => f.write_str("the guest powered off")?,
            ExitCause::Reset => f.write_str("the guest reset itself")?,
            // It is the console's text: no need to show that again.
            ExitCause::Fatal(word) => return write!(f, "the guest gave up: {word}"),
            ExitCause::Killed => return f.write_str("the VM was killed by the host"),
            ExitCause::OutOfMemory { reason } => {
                return write!(f, "the VMM was killed for want of memory on this host: {reason}");
            }
            ExitCause::Vmm { status, message } => {
                write!(f, "the hypervisor failed ({status})")?;
                if !message.is_empty() {
                    return write!(f, ": {message}");
                }
            }
        }
        if !self.console.is_empty() {
            write!(f, "; last on its console: {}", self.console)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_word_is_the_reason() {
        let console = "[ 0.8] run\nskep-agent: fatal: no port skep.agent\n[ 0.9] Kernel panic - not syncing: Attempted to kill init!\n";
        let exit = VmExit::with_console(ExitCause::Reset, console.into());
        assert_eq!(exit.to_string(), "the guest gave up: skep-agent: fatal: no port skep.agent");
        let console = "x\n[    0.52] Kernel panic - not syncing: VFS: Unable to mount root fs\n---";
        let exit = VmExit::with_console(ExitCause::Reset, console.into());
        assert!(exit.to_string().ends_with("Kernel panic - not syncing: VFS: Unable to mount root fs"));
        let exit = VmExit::with_console(ExitCause::Reset, "x\npanic: no init\ncpuid = 0\n".into());
        assert_eq!(exit.to_string(), "the guest gave up: panic: no init");
    }

    #[test]
    fn without_one_the_console_is_shown() {
        let exit = VmExit::with_console(ExitCause::Reset, "boot\nstopped here".into());
        assert_eq!(exit.to_string(), "the guest reset itself; last on its console: boot\nstopped here");
        let exit = VmExit::with_console(ExitCause::PoweredOff, String::new());
        assert_eq!(exit.to_string(), "the guest powered off");
        let cause = ExitCause::Vmm { status: "exit status 1".into(), message: "no such device".into() };
        let exit = VmExit::with_console(cause, "Kernel panic - not syncing: x".into());
        assert_eq!(exit.to_string(), "the hypervisor failed (exit status 1): no such device");
    }

    #[test]
    fn a_guest_cannot_make_the_reason_long() {
        let console = format!("skep-agent: fatal: {}", "é".repeat(100_000));
        let VmExit { cause: ExitCause::Fatal(word), .. } = VmExit::with_console(ExitCause::Reset, console)
        else {
            panic!("not fatal")
        };
        assert_eq!(word.chars().count(), MOST_WORD);
    }
}
