//! What goes into the machine: programs, tests, guests, containerd, in a tar archive on a disk.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde_json::Value;
use skep_tests::image::{APPLETS, BUSYBOX_VARIABLE};
use skep_tests::suite::{BIN_VARIABLE, FREEBSD_GUEST_VARIABLE, GUEST_VARIABLE};

use super::containerd;
use crate::cache::Cache;
use crate::freebsd::{TARGET, Toolchain};
use crate::progress::{Step, line, megabytes};
use crate::{apt, command, guest, workspace};

const RUNNER: &str = include_str!("runner.sh");
/// Where everything is in the machine.
const ROOT: &str = "/skep";
/// The CNI plugin, by package and name.
const PLUGIN: (&str, &str) = ("skep-cni", "skep-cni");
/// All programs of a host.
const PROGRAMS: &[(&str, &str)] = &[
    ("skep", "skep"),
    ("containerd-shim-skep-v2", "containerd-shim-skep-v2"),
    PLUGIN,
    ("skep-agent", "skep-agent"),
];

/// Tests that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Unit tests of the crates that make up a host
    Unit,
    /// The CNI plugin's tests
    Cni,
    /// Containers in microVMs
    E2e,
    /// The CNI plugin's figures; only where named
    CniBench,
}

impl Group {
    /// All that test something, the short ones first.
    pub(crate) const ALL: [Self; 3] = [Self::Unit, Self::Cni, Self::E2e];
}

/// A test program: what cargo calls its package and its target, and how long it may run, in seconds.
struct Program {
    group: Group,
    package: &'static str,
    target: &'static str,
    limit: u32,
}

/// The test programs.
const TESTS: &[Program] = &[
    Program { group: Group::Unit, package: "skep", target: "skep", limit: 900 },
    Program { group: Group::Unit, package: "skep-cni", target: "skep_cni", limit: 900 },
    Program { group: Group::Unit, package: "skep-agent", target: "skep-agent", limit: 900 },
    Program { group: Group::Cni, package: "skep-cni", target: "freebsd", limit: 3600 },
    Program { group: Group::Cni, package: "skep-cni", target: "freebsd_attach", limit: 1800 },
    Program { group: Group::Cni, package: "skep-cni", target: "freebsd_leases", limit: 3600 },
    Program { group: Group::Cni, package: "skep-cni", target: "freebsd_uplink", limit: 1800 },
    Program { group: Group::Cni, package: "skep-cni", target: "freebsd_vxlan", limit: 1800 },
    Program { group: Group::CniBench, package: "skep-cni", target: "freebsd_bench", limit: 7200 },
    Program { group: Group::E2e, package: "skep-tests", target: "e2e", limit: 7200 },
];

/// How long the benchmark of sandboxes may run, in seconds.
const BENCH_LIMIT: u32 = 3600;

/// The second disk.
pub(crate) struct Payload {
    /// A tar archive, as long as a disk has to be.
    pub(crate) disk: PathBuf,
}

/// What is to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    /// Which tests.
    pub(crate) groups: Vec<Group>,
    /// Arguments of the end-to-end tests.
    pub(crate) arguments: Vec<String>,
    /// How often the benchmark of sandboxes boots one; none without it.
    pub(crate) rounds: Option<usize>,
    /// A directory with a FreeBSD guest.
    pub(crate) freebsd_guest: Option<PathBuf>,
    /// Without optimisation.
    pub(crate) dev: bool,
}

/// Builds everything that is to run.
pub(crate) fn build(contents: &Contents, cache: &Cache) -> Result<Payload> {
    let Contents { groups, arguments, rounds, freebsd_guest, dev } = contents;
    let toolchain = Toolchain::make(cache)?;
    let cargo = || {
        let mut cargo = toolchain.cargo("zigbuild");
        if !*dev {
            cargo.arg("--release");
        }
        cargo
    };
    let profile = if *dev { "debug" } else { "release" };
    let mut files: Vec<(String, PathBuf)> = Vec::new();

    line("building programs and tests for FreeBSD");
    let hosts = rounds.is_some() || groups.iter().any(|group| !matches!(group, Group::Cni | Group::CniBench));
    let programs = if hosts { PROGRAMS } else { &[PLUGIN] };
    command::run(cargo().args(programs.iter().flat_map(|(package, _)| ["--package", package])))
        .context("the programs do not build")?;
    for (_, name) in programs {
        files.push((format!("bin/{name}"), toolchain.target_dir().join(TARGET).join(profile).join(name)));
    }
    let chosen = || TESTS.iter().filter(|test| groups.contains(&test.group));
    let mut tests = cargo();
    tests
        .args(chosen().flat_map(|test| ["--package", test.package]))
        .args(["--tests", "--message-format=json-render-diagnostics"]);
    let built = executables(&mut tests).context("the tests do not build")?;
    let mut plan = String::new();
    if let Some(rounds) = rounds {
        let name = "bench-guest";
        command::run(cargo().args(["--package", "skep-tests", "--features", "bench", "--bin", name]))
            .context("the benchmark does not build")?;
        files.push((format!("tests/{name}"), toolchain.target_dir().join(TARGET).join(profile).join(name)));
        let _ = writeln!(plan, "{name} {BENCH_LIMIT} {rounds}");
    }
    for test in chosen() {
        // A program may have the name of its package's library, which is what has the tests then.
        let found = built
            .iter()
            .filter(|built| (built.package.as_str(), built.target.as_str()) == (test.package, test.target))
            .min_by_key(|built| built.program);
        let path =
            &found.with_context(|| format!("cargo built no test {} of {}", test.target, test.package))?.path;
        let name = format!("{}-{}", test.package, test.target);
        let more = match test.group {
            Group::E2e => arguments.join(" "),
            Group::CniBench => format!("--ignored --nocapture {}", arguments.join(" ").replace(',', " ")),
            // Without end-to-end tests the filter is theirs.
            Group::Cni if !groups.contains(&Group::E2e) => arguments.join(" ").replace(',', " "),
            Group::Unit | Group::Cni => String::new(),
        };
        let _ = writeln!(plan, "{name} {} --color=never {more}", test.limit);
        files.push((format!("tests/{name}"), path.clone()));
    }
    let containers = groups.contains(&Group::E2e);
    let mut environment = format!(
        "export {BIN_VARIABLE}={ROOT}/bin {GUEST_VARIABLE}={ROOT}/guest {BUSYBOX_VARIABLE}={ROOT}/busybox\n\
         export SKEP_CNI={ROOT}/bin/skep-cni\n\
         export PATH={ROOT}/bin:{ROOT}/containerd:/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin\n\
         export RUST_BACKTRACE=1 RUST_TEST_THREADS=1\n"
    );
    let _ = writeln!(environment, "containers={}", u8::from(containers));
    let work = tempfile::tempdir_in(workspace::target_dir()).context("cannot make a directory")?;
    // The loader's tests plan the boot of a real kernel.
    if containers || groups.contains(&Group::Unit) {
        let directory = guest::build(std::env::consts::ARCH, None, cache)?;
        for entry in
            std::fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?
        {
            let path = entry.context("cannot list the guest")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() {
                files.push((format!("guest/{name}"), path));
            }
        }
    }
    if containers {
        for name in ["containerd", "ctr"] {
            files.push((format!("containerd/{name}"), containerd::build(cache)?.join(name)));
        }
        let busybox = apt::unpacked("busybox-static", cache)?.join("bin/busybox");
        let list = command::output(Command::new(&busybox).arg("--list"), std::time::Duration::from_secs(30))?;
        let applets = work.path().join("applets");
        std::fs::write(&applets, list).context("cannot write the list of applets")?;
        files.push((format!("busybox.{APPLETS}"), applets));
        files.push(("busybox".to_owned(), busybox));
    }
    if let Some(directory) = freebsd_guest {
        let _ = writeln!(environment, "export {FREEBSD_GUEST_VARIABLE}={ROOT}/guest-freebsd");
        tree(directory, "guest-freebsd", &mut files)?;
    }
    for (name, text) in [("runner.sh", RUNNER), ("environment", &environment), ("plan", &plan)] {
        let path = work.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {name}"))?;
        files.push((name.to_owned(), path));
    }
    let disk = workspace::target_dir().join("freebsd-payload.tar");
    let size = write(&disk, &files, work.path())?;
    line(&format!("{:<16} {}", "payload", megabytes(size)));
    Ok(Payload { disk })
}

/// All files below a directory.
fn tree(directory: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in
        std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?
    {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        let name = format!("{name}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            files.push((name.clone(), path.clone()));
            tree(&path, &name, files)?;
        } else {
            files.push((name, path));
        }
    }
    Ok(())
}

/// A test program that cargo has built.
struct Built {
    package: String,
    target: String,
    /// Of a program, not of a library.
    program: bool,
    path: PathBuf,
}

/// Runs cargo and reads which tests it made: cargo's documentation, "External tools", JSON messages.
fn executables(cargo: &mut Command) -> Result<Vec<Built>> {
    let mut out = tempfile::tempfile().context("cannot make a temporary file")?;
    cargo.stdin(Stdio::null()).stdout(out.try_clone().context("cannot share a temporary file")?);
    let status = command::Group::spawn(cargo)?.wait(None)?;
    ensure!(status.success(), "cargo failed ({status})");
    out.rewind().context("cannot read what cargo says")?;
    let text = std::io::read_to_string(out).context("cannot read what cargo says")?;
    Ok(text.lines().filter_map(artifact).collect())
}

fn artifact(line: &str) -> Option<Built> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    // path+file:///w/tests#skep-tests@0.1.0, or path+file:///w/skep-tests#0.1.0 where the directory has the name.
    let (place, version) = message["package_id"].as_str()?.rsplit_once('#')?;
    let package = match version.split_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next()?,
    };
    Some(Built {
        package: package.to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        program: message["target"]["kind"].as_array()?.iter().any(|kind| kind == "bin"),
        path: message["executable"].as_str()?.into(),
    })
}

/// Writes the archive; its size. Programs go in without their symbols, which nobody reads there.
fn write(disk: &Path, files: &[(String, PathBuf)], work: &Path) -> Result<u64> {
    let step = Step::start("packing");
    let file = File::create(disk).with_context(|| format!("cannot create {}", disk.display()))?;
    let mut archive = tar::Builder::new(std::io::BufWriter::new(file));
    for (name, path) in files {
        let stripped = work.join("stripped");
        let source = if name.starts_with("tests/") || name.starts_with("bin/") {
            let mut strip = Command::new("strip");
            strip.args([OsString::from("-o"), stripped.clone().into(), path.into()]);
            command::output(&mut strip, std::time::Duration::from_secs(60))
                .with_context(|| format!("stripping {name}"))?;
            &stripped
        } else {
            path
        };
        archive
            .append_path_with_name(source, name)
            .with_context(|| format!("cannot pack {}", path.display()))?;
    }
    let mut file = archive
        .into_inner()
        .context("cannot end the archive")?
        .into_inner()
        .context("cannot write the archive")?;
    file.flush().context("cannot write the archive")?;
    let size = file.metadata().context("cannot tell the archive's size")?.len();
    // A disk has whole sectors, and tar(1) reads whole records.
    let whole = size.next_multiple_of(1 << 20);
    file.set_len(whole).context("cannot round the archive up")?;
    step.done("");
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_known_by_cargos_messages() {
        let message = |package: &str, kind: &str, test: bool| {
            serde_json::json!({"reason": "compiler-artifact", "package_id": package, "profile": {"test": test},
                "target": {"name": "e2e", "kind": [kind]}, "executable": "/t/e2e-1"})
            .to_string()
        };
        let built = artifact(&message("path+file:///w/tests#skep-tests@0.1.0", "test", true)).unwrap();
        assert_eq!((built.package.as_str(), built.target.as_str()), ("skep-tests", "e2e"));
        let library = artifact(&message("path+file:///w/skep-cni#0.1.0", "lib", true)).unwrap();
        assert_eq!((library.package.as_str(), library.program), ("skep-cni", false));
        assert!(artifact(&message("path+file:///w/skep-agent#0.1.0", "bin", true)).unwrap().program);
        assert!(artifact(&message("path+file:///w/skep-cni#0.1.0", "lib", false)).is_none());
        assert!(artifact("warning: not JSON").is_none());
    }

    #[test]
    fn every_group_has_a_test() {
        for group in Group::ALL {
            assert!(TESTS.iter().any(|test| test.group == group), "{group:?}");
        }
    }
}
