//! `cargo xtask demo`: one container in a microVM, under a containerd of its own.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use skep_tests::containerd::Containerd;
use skep_tests::containerd_versions::{Installation, Line, default_cache, find};
use skep_tests::ctr::{Runtime, Subject};
use skep_tests::image::Image;
use skep_tests::suite::Configuration;

use crate::cache::Cache;
use crate::command::{self, Group};
use crate::progress::{Step, heading, line, seconds};
use crate::setup::Setup;

const IMAGE: &str = "docker.io/library/busybox:skep-demo";
/// A command of the user's may take as long as it likes; the demo's own not.
const LIMIT: Duration = Duration::from_secs(120);

/// How long each phase took, in order.
#[derive(Debug, Default)]
struct Phases(Vec<(&'static str, Duration)>);

impl Phases {
    fn time<T>(&mut self, name: &'static str, phase: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = phase()?;
        self.0.push((name, started.elapsed()));
        Ok(result)
    }

    fn lines(&self) -> Vec<String> {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        self.0.iter().map(|(name, time)| format!("{name:<width$}  {:>9}", seconds(*time))).collect()
    }
}

/// Runs `words` in a container, `uname -a` if there are none.
pub(crate) fn run(words: &[String], cache: &Cache) -> Result<()> {
    let mut phases = Phases::default();
    let setup = phases.time("packages, programs and guest", || Setup::make(&[], cache))?;

    heading("A containerd of our own");
    let installation = installation()?;
    let containerd = phases.time("containerd's start", || {
        let step = Step::start(format!("starting containerd {}", installation.version));
        let containerd = Containerd::start(&installation, Some(&setup.build.bin))?;
        Configuration::new(&containerd, &setup.build.guest).write(&containerd)?;
        step.done(&containerd.directory().display().to_string());
        Ok(containerd)
    })?;
    phases.time("image", || {
        let step = Step::start(format!("making and importing {IMAGE}"));
        let archive = containerd.directory().join("image.tar");
        Image::busybox_from(IMAGE, &setup.busybox)?.write(&archive)?;
        containerd.import(&archive)?;
        step.done("");
        Ok(())
    })?;

    heading("A container in a microVM");
    let outcome = if words.is_empty() {
        show_kernels(&containerd, &mut phases)
    } else {
        phases.time("your command", || run_command(&containerd, words))
    };
    let outcome = outcome.with_context(|| format!("containerd's log ends with:\n{}", containerd.log_tail()));
    phases.time("cleaning up", || {
        drop(containerd);
        Ok(())
    })?;
    outcome?;

    heading("Times");
    phases.lines().iter().for_each(|text| line(text));
    heading("Try next");
    for text in [
        "cargo xtask demo -- sh -c 'ps; mount; cat /proc/meminfo'   another command",
        "cargo xtask demo -- sh                                      a shell in a microVM",
        "cargo xtask test                                            every test",
        "cargo xtask bench                                           the same steps beside runc",
    ] {
        line(text);
    }
    Ok(())
}

/// Any containerd that this machine has, the system's own first.
fn installation() -> Result<Installation> {
    let cache = default_cache()?;
    for line in Line::ALL {
        if let Some(found) = find(line, &cache)? {
            return Ok(found);
        }
    }
    anyhow::bail!("no containerd of a known version (1.6, 1.7, 2.x) is in PATH")
}

fn show_kernels(containerd: &Containerd, phases: &mut Phases) -> Result<()> {
    let uname = ["uname", "-a"];
    let subject = Subject { containerd, runtime: Runtime::Skep };
    let shown = containerd.ctr_command(run_words(&uname, false));
    line(&format!("$ {}", shell_line(&shown)));
    let output = phases.time("the container, from ctr run to its end", || {
        subject.run("demo").image(IMAGE).args(uname).output_within(LIMIT)
    })?;
    let inside = output.text()?;
    let outside = command::output(std::process::Command::new("uname").arg("-a"), LIMIT)?;
    line(&format!("in the container:  {inside}"));
    line(&format!("on the host:       {}", outside.trim()));
    ensure!(inside != outside.trim(), "the container ran under the host's own kernel");
    Ok(())
}

fn run_command(containerd: &Containerd, words: &[String]) -> Result<()> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut command = containerd.ctr_command(run_words(words, terminal));
    line(&format!("$ {}", shell_line(&command)));
    // In our own process group: it is the one that owns the terminal.
    let status = if terminal {
        command.status().context("cannot run ctr")?
    } else {
        Group::spawn(&mut command)?.wait(None)?
    };
    ensure!(status.success(), "the command ended with {status}");
    Ok(())
}

fn run_words<S: AsRef<str>>(words: &[S], terminal: bool) -> Vec<String> {
    let mut all = vec!["run", "--rm", "--runtime", Runtime::Skep.name()];
    if terminal {
        all.push("--tty");
    }
    all.extend([IMAGE, "demo"]);
    all.extend(words.iter().map(AsRef::as_ref));
    all.into_iter().map(str::to_owned).collect()
}

/// A command as one would type it.
fn shell_line(command: &std::process::Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_one_would_type_them() {
        let mut command = std::process::Command::new("/usr/bin/ctr");
        command.args(["run", "sh", "-c", "it's $HOME", ""]);
        assert_eq!(shell_line(&command), r"/usr/bin/ctr run sh -c 'it'\''s $HOME' ''");
    }

    #[test]
    fn phases_line_up() {
        let mut phases = Phases::default();
        phases.0.push(("a", Duration::from_secs(1)));
        phases.0.push(("long name", Duration::from_secs(100)));
        assert_eq!(phases.lines(), ["a             1.00 s", "long name    100.0 s"]);
    }
}
