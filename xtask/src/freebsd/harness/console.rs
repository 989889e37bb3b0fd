//! The serial console: logging in as root, and commands with their status.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rexpect::error::Error;
use rexpect::session::{StreamSession, spawn_stream};
use skep_tests::process::check_interrupt;

use super::machine::{Machine, tail};

/// How often a wait looks after the machine and after the user.
const TICK_MS: u64 = 500;
/// How long a shell may take to answer.
const ANSWER: Duration = Duration::from_secs(120);
/// The machine's serial console.
pub(crate) struct Console {
    session: StreamSession<UnixStream>,
}

impl Console {
    /// Connects to the console.
    pub(crate) fn open(machine: &Machine) -> Result<Self> {
        let stream = machine.console()?;
        let writer = stream.try_clone().context("cannot share the console")?;
        Ok(Self { session: spawn_stream(stream, writer, Some(TICK_MS)) })
    }

    /// Waits for the login prompt, logs in as root and makes a quiet shell of what is there then.
    pub(crate) fn log_in(&mut self, machine: &mut Machine, limit: Duration) -> Result<()> {
        self.expect(machine, "login: ", limit, "a login prompt").context(
            "the image must have a getty on its first serial port, as FreeBSD's have where the console is there: put \
             'console=\"comconsole\"' into its /boot/loader.conf",
        )?;
        self.start("root")?;
        let (_, found) = self.expect(machine, "Password:|incorrect|[#%$>] $", ANSWER, "a shell")?;
        if found == "Password:" || found == "incorrect" {
            bail!("root has a password in this image: it must log in without one on the serial console");
        }
        // What is typed is echoed until then: the mark must not be in it.
        self.start("exec /bin/sh")?;
        // What is typed while a shell starts is lost.
        self.expect(machine, "[#%$>] $", ANSWER, "/bin/sh")?;
        self.start("set +o emacs; stty -echo; PS1=; echo '@@'ready'@@'")?;
        self.expect(machine, "@@ready@@", ANSWER, "/bin/sh on the console").map(drop)
    }

    /// Runs a shell command to its end; its status and what it said.
    pub(crate) fn run(
        &mut self,
        machine: &mut Machine,
        command: &str,
        limit: Duration,
    ) -> Result<(u32, String)> {
        self.start(&format!("{command}; echo '@@'status=$?'@@'"))?;
        let (said, mark) =
            self.expect(machine, r"@@status=\d+@@", limit, &format!("the end of '{command}'"))?;
        let digits: String = mark.chars().filter(char::is_ascii_digit).collect();
        Ok((digits.parse().context("a status is a number")?, said))
    }

    /// Types a line.
    pub(crate) fn start(&mut self, line: &str) -> Result<()> {
        self.session.send(&format!("{line}\r")).map_err(|error| anyhow::anyhow!("cannot type: {error}"))?;
        self.session.flush().map_err(|error| anyhow::anyhow!("cannot type: {error}"))
    }

    /// Ends the machine as well as it can be ended.
    pub(crate) fn shut_down(&mut self, machine: &mut Machine) {
        // With what is wrong already, nothing is lost: its disk is not kept.
        let _ = self.start("shutdown -p now");
        machine.end();
    }

    /// Waits for what `pattern` matches; what was said before it, and the match.
    fn expect(
        &mut self,
        machine: &mut Machine,
        pattern: &str,
        limit: Duration,
        what: &str,
    ) -> Result<(String, String)> {
        let begin = Instant::now();
        loop {
            match self.session.exp_regex(pattern) {
                Ok(found) => return Ok(found),
                Err(Error::Timeout { got, .. }) => {
                    check_interrupt()?;
                    machine.check()?;
                    if begin.elapsed() > limit {
                        let seconds = limit.as_secs();
                        bail!(
                            "waited {seconds} s in vain for {what}; the console's last words:\n{}",
                            tail(&got)
                        );
                    }
                }
                Err(Error::EOF { got, .. }) => {
                    machine.check()?;
                    bail!("the console was closed while waiting for {what}:\n{}", tail(&got));
                }
                Err(error) => bail!("waiting for {what}: {error}"),
            }
        }
    }
}
