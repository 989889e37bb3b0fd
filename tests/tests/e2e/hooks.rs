//! Hooks of the OCI specification: what they are told, when they run, and what their failure does.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use skep_tests::ctr::Runtime;
use skep_tests::process::{LIMIT, wait_for};
use skep_tests::suite::Lease;

use crate::Case;
use crate::failures::{is_shim_of, member};

pub(crate) const CASES: &[Case] = &[
    Case::both("hooks_of_a_life", hooks_of_a_life),
    Case::both("hook_fails", hook_fails),
    Case::both("hook_in_the_container", hook_in_the_container),
    Case::skep("hook_before_the_root", hook_before_the_root),
    Case::skep("poststop_after_a_kill", poststop_after_a_kill),
];

fn hook(directory: &Path, script: &str) -> Value {
    let script = format!("cd {} && {script}", directory.display());
    json!({ "path": "/bin/sh", "args": ["hook", "-c", script], "env": ["PATH=/usr/bin:/bin", "WHO=caller"] })
}

/// What a hook was told.
fn told(directory: &Path, name: &str) -> Result<Value> {
    let text = wait_for(&format!("hook {name}"), LIMIT, || {
        Ok(fs::read_to_string(directory.join(name)).ok().filter(|text| text.ends_with('}')))
    })?;
    Ok(serde_json::from_str(&text)?)
}

fn hooks_of_a_life(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let (rootfs, out) = (lease.rootfs("root")?, lease.scratch("hooks")?);
    let mut spec = subject.spec("life", &rootfs, ["/bin/sh", "-c", "echo in the container; exit 3"])?;
    spec["annotations"] = json!({ "example.org/a": "b" });
    spec["hooks"] = json!({
        "prestart": [hook(&out, "echo prestart >>order; cat >prestart")],
        // The network namespace of the pid is where a CNI hook puts its interfaces.
        "createRuntime": [hook(&out, "echo createRuntime $WHO >>order; cat >create; \
            ls -l /proc/$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' create)/ns/net >netns")],
        "poststart": [hook(&out, "echo poststart >>order; cat >poststart")],
        "poststop": [hook(&out, "echo poststop >>order; cat >poststop")],
    });
    let output = subject.run("life").spec(&spec)?.output()?;
    ensure!(output.code() == 3 && output.out() == "in the container\n", "{}", output.describe());
    let stopped = told(&out, "poststop")?;
    let order = fs::read_to_string(out.join("order"))?;
    ensure!(order == "prestart\ncreateRuntime caller\npoststart\npoststop\n", "{order}");
    let state = told(&out, "create")?;
    ensure!(state["id"] == "life" && state["annotations"]["example.org/a"] == "b", "{state}");
    ensure!(state["bundle"].as_str().is_some_and(|bundle| bundle.ends_with("/life")), "{state}");
    ensure!(fs::read_to_string(out.join("netns"))?.contains("net:["), "no network namespace: {state}");
    ensure!(stopped["status"] == "stopped", "{stopped}");
    if lease.runtime == Runtime::Skep {
        ensure!(state["status"] == "creating", "{state}");
        ensure!(told(&out, "poststart")?["status"] == "running");
    }
    Ok(())
}

fn hook_fails(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let (rootfs, out) = (lease.rootfs("root")?, lease.scratch("hooks")?);
    let mut spec = subject.spec("fails", &rootfs, ["/bin/true"])?;
    spec["hooks"] = json!({
        "createRuntime": [hook(&out, "echo no such network >&2; exit 5"), hook(&out, "touch second")],
        "poststop": [hook(&out, "cat >poststop")],
    });
    let output = subject.run("fails").spec(&spec)?.output()?;
    ensure!(output.code() != 0 && output.err().contains("no such network"), "{}", output.describe());
    ensure!(!out.join("second").exists(), "a hook ran after one that failed");
    told(&out, "poststop")?;
    Ok(())
}

fn hook_in_the_container(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let rootfs = lease.rootfs("root")?;
    let mut spec = subject.spec("inside", &rootfs, ["/bin/cat", "/hooked"])?;
    let hook = |script: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"] }]);
    spec["hooks"] =
        json!({ "startContainer": hook("/bin/echo $A >/hooked; /bin/grep -o startContainer /hooked; :") });
    let output = subject.run("inside").spec(&spec)?.output()?;
    ensure!(output.text()? == "b", "{}", output.describe());
    spec["hooks"] = json!({ "startContainer": hook("exit 1") });
    let output = subject.run("inside").spec(&spec)?.output()?;
    ensure!(output.code() != 0, "a failed hook was passed over: {}", output.describe());
    Ok(())
}

fn hook_before_the_root(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let mut spec = subject.spec("before", &lease.rootfs("root")?, ["/bin/true"])?;
    spec["hooks"] = json!({ "createContainer": [{ "path": "/usr/bin/some-hook" }] });
    let output = subject.run("before").spec(&spec)?.output()?;
    for word in ["hooks.createContainer[0]", "/usr/bin/some-hook", "createRuntime"] {
        ensure!(output.code() != 0 && output.err().contains(word), "{}", output.describe());
    }
    Ok(())
}

fn poststop_after_a_kill(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let (rootfs, out) = (lease.rootfs("root")?, lease.scratch("hooks")?);
    let mut spec = subject.spec("killed", &rootfs, ["/bin/sleep", "1000"])?;
    spec["hooks"] = json!({ "poststop": [hook(&out, "echo x >>count; cat >poststop")] });
    subject.run("killed").spec(&spec)?.flags(["--null-io"]).detached()?;
    kill(member(lease, "the shim", is_shim_of("killed"))?, Signal::SIGKILL)?;
    let state = told(&out, "poststop")?;
    ensure!(state["id"] == "killed" && state["status"] == "stopped", "{state}");
    subject.remove("killed")?;
    ensure!(fs::read_to_string(out.join("count"))? == "x\n", "it ran more than once");
    Ok(())
}
