//! A container's root: where it comes from, what can be done in it, and what becomes of writes.

use anyhow::{Result, ensure};
use skep_tests::ctr::Runtime;
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("writes_reach_the_snapshot", writes_reach_the_snapshot).on_freebsd(),
    Case::skep("overlay_forgets_writes", overlay_forgets_writes).on_freebsd(),
    Case::both("native_snapshots", native_snapshots).on_freebsd(),
    Case::both("read_only", read_only).on_freebsd(),
    Case::both("file_operations", file_operations).on_freebsd(),
    Case::skep("file_operations_on_overlay", file_operations_on_overlay).on_freebsd(),
    Case::both("special_files", special_files).on_freebsd(),
    Case::both("bind_mount", bind_mount).on_freebsd(),
];

fn writes_reach_the_snapshot(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let script = "test -e /kept && cat /kept; echo \"second run\" >/kept; ls /bin/sh; rm -f /bin/vi";
    let first = subject.run("writes").keep().sh(script).output()?;
    ensure!(first.text()? == "/bin/sh", "{}", first.describe());
    let again = subject.ctr(["task", "start", "writes"])?;
    ensure!(again.text()? == "second run\n/bin/sh", "{}", again.describe());
    subject.remove("writes")
}

fn overlay_forgets_writes(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let script = "test -e /kept && echo still there; echo x >/kept && cat /kept; rm /bin/vi && ls /bin/sh";
    let run = subject.run("forgets").keep().flags(["--annotation", "org.skep.rootfs=overlay"]);
    let first = run.sh(script).output()?;
    ensure!(first.text()? == "x\n/bin/sh", "{}", first.describe());
    let again = subject.ctr(["task", "start", "forgets"])?;
    ensure!(again.out() == first.out(), "{}", again.describe());
    subject.remove("forgets")
}

fn native_snapshots(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let run = subject.run("native").keep().flags(["--snapshotter", "native"]);
    let first = run.sh("cat /kept 2>/dev/null; echo second run >/kept; head -n 1 /etc/passwd").output()?;
    ensure!(first.text()? == "root:x:0:0:root:/root:/bin/sh", "{}", first.describe());
    let again = subject.ctr(["task", "start", "native"])?;
    ensure!(again.out() == format!("second run\n{}", first.out()), "{}", again.describe());
    subject.remove("native")
}

fn read_only(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("read-only").flags(["--read-only"]);
    let output = run
        .sh("touch /new; echo $?; rm /etc/passwd; echo $?; echo x >/dev/shm/a && cat /dev/shm/a")
        .output()?;
    ensure!(output.text()? == "1\n1\nx", "{}", output.describe());
    ensure!(output.err().matches("Read-only file system").count() == 2, "{}", output.describe());
    Ok(())
}

const OPERATIONS: &str = r"set -e
    mkdir -p /d/e && cd /d
    echo content >file && chown 1000:2000 file && chmod 4751 file && stat -c '%a %u:%g %s %h' file
    ln file link && stat -c %h file && ln -s file symbolic && readlink symbolic && cat symbolic
    mv file e/moved && cat e/moved && test ! -e file
    touch -d '2001-02-03 04:05:06' link && stat -c %Y link
    dd if=/dev/zero of=sparse bs=1 count=1 seek=1048575 2>/dev/null && stat -c %s sparse && truncate -s 10 sparse && stat -c %s sparse
    yes abcdefg | head -c 3000000 >large && md5sum <large && echo appended >>large && tail -c 9 large
    rm -r e && ls -A
    for i in $(seq 200); do echo $i >many-$i; done && ls many-* | wc -l && cat many-* | sort -n | tail -n 1
    rm many-* && rmdir ../d 2>/dev/null || echo not empty
    echo '#!/bin/sh
echo ran' >program && chmod +x program && ./program
";

/// bhyve's server keeps no set-user-ID bit (contrib/lib9p/backend/fs.c masks modes with 0777).
const MODE_ON_9P: &str = if cfg!(target_os = "linux") { "4751" } else { "751" };

/// After the mode of the first file.
const OPERATIONS_RESULT: &str = " 1000:2000 8 1
2
file
content
content
981173106
1048576
10
99be50473ad3bf72820310f148f4b41a  -
appended
large
link
sparse
symbolic
200
200
not empty
ran";

fn file_operations(lease: &mut Lease) -> Result<()> {
    let output = lease.subject().sh("operations", OPERATIONS)?;
    ensure!(output.text()? == format!("{MODE_ON_9P}{OPERATIONS_RESULT}"), "{}", output.describe());
    Ok(())
}

fn file_operations_on_overlay(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("operations").flags(["--annotation", "org.skep.rootfs=overlay"]);
    let output = run.sh(OPERATIONS).output()?;
    ensure!(output.text()? == format!("4751{OPERATIONS_RESULT}"), "{}", output.describe());
    Ok(())
}

/// Not on a 9p root: QEMU's fix of CVE-2023-2861 refuses to make what is neither file nor directory.
fn special_files(lease: &mut Lease) -> Result<()> {
    let script = r"set -e
        mkfifo pipe && (echo through >pipe & cat pipe)
        mknod null c 1 3 && stat -c '%F %t:%T' null && echo lost >null
        ln -s /socket /dev/log && syslogd && for i in $(seq 100); do test -S socket || sleep 0.05; done
        stat -c %F socket && logger -p user.info heard && grep -o heard /var/log/messages";
    let mut run = lease.subject().run("special");
    if lease.runtime == Runtime::Skep {
        run = run.flags(["--annotation", "org.skep.rootfs=overlay"]);
    }
    let output = run.sh(&format!("mkdir -p /var/log; {script}")).output()?;
    ensure!(output.text()? == "through\ncharacter special file 1:3\nsocket\nheard", "{}", output.describe());
    Ok(())
}

fn bind_mount(lease: &mut Lease) -> Result<()> {
    let shared = lease.scratch("volume")?;
    std::fs::write(shared.join("in"), "given")?;
    let mount = format!("type=bind,src={},dst=/volume,options=rbind:rw", shared.display());
    let run = lease.subject().run("bind").flags(["--mount", &mount]);
    let output = run.sh("cat /volume/in; echo taken >/volume/out; chmod 600 /volume/out").output()?;
    ensure!(output.text()? == "given", "{}", output.describe());
    ensure!(std::fs::read_to_string(shared.join("out"))? == "taken\n");
    Ok(())
}
