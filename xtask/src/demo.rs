//! `cargo xtask demo`: one container in a microVM, under a containerd of its own.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skep::sandbox::TimingsFile;
use skep_tests::containerd::Containerd;
use skep_tests::containerd_versions::{Installation, Line, default_cache, find};
use skep_tests::ctr::{Runtime, Subject};
use skep_tests::image::Image;
use skep_tests::suite::Configuration;

use crate::cache::Cache;
use crate::command::{self, Group};
use crate::phases::Phases;
use crate::progress::{Step, heading, line};
use crate::setup::Setup;

const IMAGE: &str = "docker.io/library/busybox:skep-demo";
/// A command of the user's may take as long as it likes; the demo's own not.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs `words` in a container, `uname -a` if there are none.
pub(crate) fn run(words: &[String], cache: &Cache) -> Result<()> {
    let mut phases = Phases::default();
    let setup = Setup::make(&[], cache, &mut phases)?;

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
    let mut timings = None;
    let output = phases.time("the container, from ctr run to its end", || {
        let run = || subject.run("demo").image(IMAGE).args(uname).output_within(LIMIT);
        let (output, seen) = watching(&containerd.skep_state(), run);
        timings = seen;
        output
    })?;
    let inside = output.text().with_context(|| format!("containerd's log:\n{}", containerd.log_tail()))?;
    let outside = command::output(std::process::Command::new("uname").arg("-a"), LIMIT)?;
    line(&format!("in the container:  {inside}"));
    line(&format!("on the host:       {}", outside.trim()));
    ensure!(inside != outside.trim(), "the container ran under the host's own kernel");
    let mut before = Duration::ZERO;
    for mark in timings.map(|timings| timings.marks).unwrap_or_default() {
        let at = Duration::from_micros(mark.at_us);
        phases.add(&format!("  of it: {}", mark.name), at.saturating_sub(before));
        before = at;
    }
    Ok(())
}

/// Runs `run` and reads the sandbox's timings meanwhile: they go with the sandbox.
fn watching<T>(state: &Path, run: impl FnOnce() -> T) -> (T, Option<TimingsFile>) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut newest = None;
            while !ended.load(Ordering::Relaxed) {
                newest = timings(state).or(newest);
                std::thread::sleep(Duration::from_millis(20));
            }
            newest
        });
        let result = run();
        ended.store(true, Ordering::Relaxed);
        (result, watcher.join().ok().flatten())
    })
}

/// The timings of the one sandbox there is, if it is there yet.
fn timings(state: &Path) -> Option<TimingsFile> {
    let sandbox = std::fs::read_dir(state.join("sb")).ok()?.next()?.ok()?.path();
    serde_json::from_slice(&std::fs::read(sandbox.join("timings.json")).ok()?).ok()
}

fn run_command(containerd: &Containerd, words: &[String]) -> Result<()> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut command = containerd.ctr_command(run_words(words, terminal));
    line(&format!("$ {}", shell_line(&command)));
    // With a terminal in our own process group: it is the one that owns the terminal.
    let status = if terminal {
        command.status().context("cannot run ctr")?
    } else {
        Group::spawn(&mut command)?.wait(None)?
    };
    if !status.success() {
        line(&format!("it ended with {status}"));
    }
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
}
