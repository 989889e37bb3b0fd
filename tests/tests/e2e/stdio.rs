//! Where output goes that no client reads: files and loggers.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use skep_tests::process::{LIMIT, wait_for};
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("file_of_both_streams", file_of_both_streams).on_freebsd(),
    Case::both("logger", logger).on_freebsd().everywhere(),
    Case::both("logger_of_exec", logger_of_exec).on_freebsd(),
    Case::both("logger_missing", logger_missing).on_freebsd(),
    Case::skep("logger_never_ready", logger_never_ready).on_freebsd(),
    Case::skep("logger_ends_early", logger_ends_early).on_freebsd(),
    Case::both("endless_output", endless_output).on_freebsd(),
];

/// Writes what it gets to `out` and `err`, and at the end `end`, in a directory of its own.
const LOGGER: &str = r#"env | grep ^CONTAINER_ | sort >"$1/env"
    trap "" TERM; cat <&3 5>&- >"$1/out" & cat <&4 5>&- >"$1/err" & exec 5>&- 3<&- 4<&-
    wait; echo end >"$1/end""#;

/// A logger that is a script; the URI that names it, and its directory.
fn script(lease: &Lease, scheme: &str, text: &str) -> Result<(String, PathBuf)> {
    let directory = lease.scratch("logger")?;
    let program = directory.join("logger");
    // The shell by its own path: a logger has no search path.
    fs::write(&program, format!("#!/bin/sh\nPATH=/usr/bin:/bin\nset -- \"$2\"\n{text}\n"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let uri = format!("{scheme}://{}?directory={}", program.display(), directory.display());
    Ok((uri, directory))
}

fn read(directory: &Path, name: &str) -> Result<String> {
    wait_for(&format!("the logger to write {name}"), LIMIT, || {
        Ok(fs::read_to_string(directory.join(name)).ok())
    })
}

fn file_of_both_streams(lease: &mut Lease) -> Result<()> {
    let file = lease.scratch("log")?.join("new/log");
    let uri = format!("file://{}", file.display());
    for id in ["first", "second"] {
        let run = lease.subject().run(id).flags(["--log-uri", &uri]);
        let output = run.sh(&format!("echo {id} to out; echo {id} to err >&2; exit 3")).output()?;
        ensure!(output.code() == 3 && output.stdout.is_empty(), "{}", output.describe());
    }
    let text = fs::read_to_string(&file)?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["first to err", "first to out", "second to err", "second to out"], "{text}");
    Ok(())
}

fn logger(lease: &mut Lease) -> Result<()> {
    let (uri, directory) = script(lease, "binary", LOGGER)?;
    let run = lease.subject().run("logged").flags(["--log-uri", &uri]);
    let output = run.sh("seq 1 20000; echo to err >&2; exit 4").output()?;
    ensure!(output.code() == 4, "{}", output.describe());
    let numbers: Vec<String> = (1..=20_000).map(|number| number.to_string()).collect();
    read(&directory, "end")?;
    ensure!(read(&directory, "out")?.lines().eq(numbers.iter().map(String::as_str)), "output is missing");
    ensure!(read(&directory, "err")? == "to err\n");
    let namespace = lease.containerd.namespace();
    let env = read(&directory, "env")?;
    ensure!(env == format!("CONTAINER_ID=logged\nCONTAINER_NAMESPACE={namespace}\n"), "{env}");
    Ok(())
}

fn logger_of_exec(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("host").flags(["--null-io"]).sh("sleep 1000").detached()?;
    let (uri, directory) = script(lease, "binary", LOGGER)?;
    let exec = subject.exec("host", "one").flags(["--log-uri", &uri]).sh("echo from exec; exit 5");
    ensure!(exec.output()?.code() == 5);
    read(&directory, "end")?;
    ensure!(read(&directory, "out")? == "from exec\n");
    ensure!(read(&directory, "env")?.starts_with("CONTAINER_ID=one\n"), "{}", read(&directory, "env")?);
    subject.remove("host")
}

fn logger_missing(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("missing").flags(["--log-uri", "binary:///no/such/logger"]);
    let output = run.sh("true").output()?;
    ensure!(output.code() != 0 && output.err().contains("/no/such/logger"), "{}", output.describe());
    Ok(())
}

fn logger_never_ready(lease: &mut Lease) -> Result<()> {
    let (uri, _) = script(lease, "binary-v2", "exit 0")?;
    let output = lease.subject().run("unready").flags(["--log-uri", &uri]).sh("true").output()?;
    ensure!(output.code() != 0 && output.err().contains("ready"), "{}", output.describe());
    Ok(())
}

/// runc's containers are told by a signal; here the guest's output goes nowhere, and the container on.
fn logger_ends_early(lease: &mut Lease) -> Result<()> {
    let (uri, _) = script(lease, "binary", "exit 3")?;
    let run = lease.subject().run("unheard").flags(["--log-uri", &uri]);
    let output = run.sh("yes | head -c 2000000; exit 7").output()?;
    ensure!(output.code() == 7, "{}", output.describe());
    Ok(())
}

/// What a process leaves behind writes for ever to what it left: that keeps nobody from going on.
fn endless_output(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("leaves").flags(["--null-io"]).args(["sleep", "1000"]).detached()?;
    let output = subject.exec("leaves", "e1").sh("echo first; yes & exit 3").output()?;
    ensure!(output.code() == 3 && output.out().starts_with("first\n"), "code {}", output.code());
    subject.remove("leaves")
}
