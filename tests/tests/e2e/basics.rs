//! Containers that run, say something and end.

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};
use skep_tests::ctr::{Runtime, same_outcome};
use skep_tests::image::{Image, PATH};
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("kernel", kernel).on_freebsd().everywhere(),
    Case::both("streams_and_exit_code", streams_and_exit_code).on_freebsd().everywhere(),
    Case::both("exit_codes", exit_codes).on_freebsd(),
    Case::both("large_output", large_output).on_freebsd(),
    Case::both("large_input", large_input).on_freebsd(),
    Case::both("binary_output", binary_output).on_freebsd(),
    Case::both("output_of_children", output_of_children).on_freebsd(),
    Case::both("terminal", terminal).on_freebsd(),
    Case::both("image_configuration", image_configuration).on_freebsd(),
    Case::both("environment_and_directory", environment_and_directory).on_freebsd(),
    Case::both("without_stdio", without_stdio).on_freebsd(),
    Case::skep("piped_input", piped_input).on_freebsd().everywhere(),
    Case::skep("same_as_runc", same_as_runc),
];

fn kernel(lease: &mut Lease) -> Result<()> {
    let host = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let output = lease.subject().run("kernel").args(["uname", "-r"]).output()?;
    let release = output.text()?;
    ensure!(!release.is_empty());
    ensure!(output.stderr.is_empty(), "{}", output.describe());
    // That is what a microVM is: another kernel.
    ensure!((release == host.trim()) == (lease.runtime == Runtime::Runc), "{release:?} on {host:?}");
    Ok(())
}

fn streams_and_exit_code(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("streams").sh("echo to-stderr >&2; tr a-z A-Z; exit 42");
    let output = run.stdin("some\nlines\n").output()?;
    ensure!(
        output.code() == 42 && output.out() == "SOME\nLINES\n" && output.err() == "to-stderr\n",
        output.describe()
    );
    Ok(())
}

fn exit_codes(lease: &mut Lease) -> Result<()> {
    for (id, script, code) in [
        ("zero", "true", 0),
        ("largest", "exit 255", 255),
        // A shell's own way to say that a child was killed.
        ("child", "sh -c 'kill -9 $$'; exit $?", 137),
    ] {
        let output = lease.subject().sh(id, script)?;
        ensure!(output.code() == code, "{}", output.describe());
    }
    Ok(())
}

/// Input that ends before the process starts; runc's shim loses the end of it when it is quick enough.
fn piped_input(lease: &mut Lease) -> Result<()> {
    for (id, input) in [("piped", "some\nlines\n"), ("piped-word", "x")] {
        let output = lease.subject().run(id).sh("cat; echo end").piped(input).output()?;
        ensure!(output.out() == format!("{input}end\n"), "{}", output.describe());
    }
    Ok(())
}

fn large_output(lease: &mut Lease) -> Result<()> {
    const LINES: u64 = 1_500_000;
    let output = lease.subject().sh("large-output", &format!("seq 1 {LINES}"))?;
    output.succeeded()?;
    let mut digest = Sha256::new();
    for number in 1..=LINES {
        digest.update(format!("{number}\n"));
    }
    let (length, hash) = (output.stdout.len(), Sha256::digest(&output.stdout));
    ensure!(
        length > 10_000_000 && hash == digest.finalize(),
        "{length} bytes, the last {:?}",
        tail(&output.stdout)
    );
    Ok(())
}

fn large_input(lease: &mut Lease) -> Result<()> {
    let input: Vec<u8> = (0..10_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = hex::encode(Sha256::digest(&input));
    let output = lease
        .subject()
        .run("large-input")
        .sh("echo ready >&2; sha256sum; wc -c </dev/null")
        .stdin(input)
        .output()?;
    ensure!(output.text()? == format!("{expected}  -\n0"), "{}", output.describe());
    Ok(())
}

fn binary_output(lease: &mut Lease) -> Result<()> {
    let input: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let output = lease.subject().run("binary").sh("tee /dev/stderr").stdin(input.clone()).output()?;
    output.succeeded()?;
    ensure!(
        output.stdout == input && output.stderr == input,
        "{} and {}",
        output.stdout.len(),
        output.stderr.len()
    );
    Ok(())
}

/// What a background process writes while it holds the streams open belongs to the output.
fn output_of_children(lease: &mut Lease) -> Result<()> {
    let output =
        lease.subject().sh("children", "(for i in 1 2 3; do sleep 0.1; echo $i; done) & wait; echo end")?;
    ensure!(output.text()? == "1\n2\n3\nend", "{}", output.describe());
    Ok(())
}

fn terminal(lease: &mut Lease) -> Result<()> {
    let output = lease
        .subject()
        .run("terminal")
        .terminal()
        .sh("test -t 0 && test -t 1 && test -t 2 && tty; exit 3")
        .output()?;
    ensure!(output.code() == 3 && output.out().trim() == "/dev/pts/0", "{}", output.describe());
    Ok(())
}

fn image_configuration(lease: &mut Lease) -> Result<()> {
    let reference = "skep.test/configured:latest";
    let image = Image::busybox(reference)?
        .entrypoint(["/bin/sh", "-c", r#"id -u; id -g; id -G; pwd; echo "$COLOUR"; echo "$@""#, "entry"])
        .cmd(["default", "arguments"])
        .env([PATH, "COLOUR=light blue"])
        .user("user")
        .workdir("/var");
    lease.import(&image)?;
    let output = lease.subject().run("configured").image(reference).output()?;
    ensure!(
        output.text()? == "1000\n1000\n1000 2000\n/var\nlight blue\ndefault arguments",
        "{}",
        output.describe()
    );
    Ok(())
}

fn environment_and_directory(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("environment").flags([
        "--env",
        "A=one two",
        "--env",
        "EMPTY=",
        "--cwd",
        "/new/place",
    ]);
    let output = run.sh(r#"echo "$A|${EMPTY-unset}|${OTHER-unset}"; pwd"#).output()?;
    ensure!(output.text()? == "one two||unset\n/new/place", "{}", output.describe());
    Ok(())
}

fn without_stdio(lease: &mut Lease) -> Result<()> {
    let output = lease.subject().run("null").flags(["--null-io"]).sh("echo unheard; cat; exit 5").output()?;
    ensure!(output.code() == 5 && output.stdout.is_empty(), "{}", output.describe());
    Ok(())
}

/// The same container by both runtimes: a user can't tell them apart.
fn same_as_runc(lease: &mut Lease) -> Result<()> {
    // What of /proc is masked depends on what the kernel has there; the host's may have cgroup v1.
    let script = r#"id; env | sort; cat /proc/self/uid_map; ls -l /dev | awk '{print $1, $3, $4, $NF}'; ls /
        cat /proc/self/status | grep -E '^(Cap|NoNewPrivs|Seccomp:|Umask)'; ulimit -n; hostname | wc -w; echo $$
        mount | awk '$3 != "/" {print $3}' | grep -v -e ^/sys/fs/cgroup/ -e ^/proc/ | sort
        awk '{print $1, $2}' /proc/self/mounts >/dev/null && ls /proc/self/fd; stat -c %a /tmp /dev/shm; exit 9"#;
    let outputs = [Runtime::Runc, Runtime::Skep].map(|runtime| lease.with(runtime).sh("same", script));
    let [runc, skep] = outputs;
    same_outcome(&runc.context("with runc")?, &skep.context("with skep")?)
}

fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(80)..]).into_owned()
}
