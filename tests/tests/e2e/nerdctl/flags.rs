//! Flags of `nerdctl run`: what each of them does inside, with runc beside.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skep_tests::ctr::Runtime;
use skep_tests::nerdctl::Nerdctl;
use skep_tests::suite::Lease;

/// Each of `cases`: flags, a script, and what it says. A container has no network, so nothing has to be taken away.
fn each(lease: &Lease, cases: &[(&str, &str, &str)]) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    for (flags, script, said) in cases {
        let output = nerdctl.run(&format!("--rm --net none {flags}"), &["sh", "-c", script])?;
        ensure!(
            output.code() == 0 && output.out().trim_end() == *said,
            "{flags}: expected {said:?}: {}",
            output.describe()
        );
    }
    Ok(())
}

pub(super) fn limits(lease: &mut Lease) -> Result<()> {
    let crowd = "(i=0; while test $i -lt 40; do sleep 3 & i=$((i+1)); done) 2>&1 | grep -c \"can't fork\"";
    each(
        lease,
        &[
            ("--shm-size 16m", "df -k /dev/shm | awk 'END { print $2 }'", "16384"),
            ("--ulimit nofile=100:200", "ulimit -Sn; ulimit -Hn", "100\n200"),
            (
                "--sysctl net.ipv4.ip_unprivileged_port_start=81",
                "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
                "81",
            ),
            ("--pids-limit 20", crowd, "1"),
            (
                "--cpuset-cpus 0-1",
                "awk '/Cpus_allowed_list/ { print $2 }' /proc/self/status; nproc",
                "0-1\n2",
            ),
            ("--cpuset-cpus 0", "awk '/Cpus_allowed_list/ { print $2 }' /proc/self/status", "0"),
            (
                "--memory 32m --cpus 0.5",
                "dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null; echo $?",
                "137",
            ),
        ],
    )
}

pub(super) fn rights(lease: &mut Lease) -> Result<()> {
    let profile = lease.scratch("profile")?.join("no-mkdir.json");
    // EXDEV: an error that nothing else would give.
    let rules = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 18 }] });
    fs::write(&profile, rules.to_string()).context("writing a profile")?;
    let profile = format!("--security-opt seccomp={}", profile.display());
    let status = |name: &str| format!("awk '/^{name}:/ {{ print $2 }}' /proc/self/status");
    let (effective, no_new, seccomp) = (status("CapEff"), status("NoNewPrivs"), status("Seccomp"));
    let has_time = format!("test $(( 0x$({effective}) >> 25 & 1 )) = 1 && echo has");
    let mount = "mkdir /m && mount -t tmpfs none /m 2>/dev/null && echo mounted || echo refused";
    let write = "echo 1 2>/dev/null >/proc/sys/kernel/panic && echo written || echo refused";
    each(
        lease,
        &[
            ("--cap-drop ALL --cap-add NET_RAW", &effective, "0000000000002000"),
            (
                "--cap-drop CHOWN",
                "touch /f; chown 1:1 /f 2>/dev/null && echo done || echo refused",
                "refused",
            ),
            ("--cap-add SYS_TIME", &has_time, "has"),
            ("--security-opt no-new-privileges", &no_new, "1"),
            ("", &seccomp, "2"),
            ("--security-opt seccomp=unconfined", &seccomp, "0"),
            (
                &profile,
                "mkdir /a 2>&1; true",
                "mkdir: can't create directory '/a': Invalid cross-device link",
            ),
            ("--security-opt apparmor=unconfined", "echo runs", "runs"),
            ("", mount, "refused"),
            ("--privileged", mount, "mounted"),
            ("", write, "refused"),
        ],
    )
}

pub(super) fn mounts(lease: &mut Lease) -> Result<()> {
    let given = lease.scratch("given")?;
    fs::write(given.join("file"), "given\n")?;
    let one = format!("-v {}:/etc/one:ro", given.join("file").display());
    let try_write = "echo x 2>/dev/null >/etc/one && echo written || echo refused; cat /etc/one";
    each(
        lease,
        &[
            (
                "--read-only --tmpfs /tmp",
                "touch /x 2>/dev/null || echo refused; touch /tmp/x && echo written",
                "refused\nwritten",
            ),
            (
                "--tmpfs /scratch:size=1m,mode=1700,noexec",
                "stat -c %a /scratch; df -k /scratch | awk 'END { print $2 }'; \
            cp /bin/busybox /scratch/b; /scratch/b true 2>/dev/null || echo noexec",
                "1700\n1024\nnoexec",
            ),
            (&one, try_write, "refused\ngiven"),
            ("-v kept:/kept", "echo kept >/kept/file", ""),
            (
                "-v kept:/kept:ro",
                "cat /kept/file; touch /kept/x 2>/dev/null || echo refused",
                "kept\nrefused",
            ),
        ],
    )?;
    Nerdctl::new(lease.subject())?.said("volume rm kept")?;
    Ok(())
}

/// The program that is to be the first process is a file of the host's.
pub(super) fn init(lease: &mut Lease) -> Result<()> {
    let program = lease.scratch("init")?.join("tini");
    fs::write(&program, "#!/bin/sh\nshift\n\"$@\"\necho reaped\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let flags = format!("--init-binary {}", program.display());
    each(
        lease,
        &[(
            &flags,
            "tr '\\0' ' ' </proc/1/cmdline | cut -d' ' -f2; test $$ != 1 && echo child",
            "/sbin/tini\nchild\nreaped",
        )],
    )
}

/// Devices and sockets of the host: runc passes them on, a microVM can't have them and says so.
pub(super) fn of_the_host(lease: &mut Lease) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    let socket = lease.scratch("socket")?.join("s");
    let _listener = UnixListener::bind(&socket)?;
    let mount = format!("-v {}:/run/s", socket.display());
    let cases = [
        ("--device /dev/loop-control", "test -c /dev/loop-control && echo there", "is a device of the host"),
        (mount.as_str(), "test -S /run/s && echo there", "a socket of the host"),
    ];
    for (flags, script, words) in cases {
        if flags.starts_with("--device") && !std::path::Path::new("/dev/loop-control").exists() {
            continue;
        }
        let output = nerdctl.run(&format!("--rm --net none {flags}"), &["sh", "-c", script])?;
        if lease.runtime == Runtime::Runc {
            ensure!(output.code() == 0 && output.out() == "there\n", "{}", output.describe());
        } else {
            ensure!(output.code() != 0 && output.err().contains(words), "{}", output.describe());
        }
    }
    // One that every guest has.
    each(lease, &[("--device /dev/null:/dev/mine", "echo x >/dev/mine && stat -c %t:%T /dev/mine", "1:3")])
}
