//! What an OCI spec asks for is applied inside the guest as runc applies it on the host.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_tests::ctr::Runtime;
use skep_tests::process::Output;
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("process_settings", process_settings),
    Case::both("paths_and_sysctls", paths_and_sysctls),
    Case::both("namespaces", namespaces),
    Case::both("user_namespaces", user_namespaces),
    Case::both("seccomp", seccomp),
    Case::both("devices", devices),
    Case::both("mounts_of_a_spec", mounts_of_a_spec),
    Case::skep("cgroup_limits", cgroup_limits),
    Case::both("memory_limit_kills", memory_limit_kills),
    Case::both("privileged", privileged),
    Case::both("networks_within", networks_within),
];

/// Runs `script` with the spec that `change` makes of the usual one.
fn with_spec(lease: &Lease, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> Result<Output> {
    let rootfs = lease.rootfs(id)?;
    let subject = lease.subject();
    let mut spec = subject.spec(id, &rootfs, ["/bin/sh", "-c", script])?;
    change(&mut spec);
    subject.run(id).spec(&spec)?.output()
}

/// The `name=value` lines of an output.
fn facts(output: &Output) -> Result<BTreeMap<String, String>> {
    output.succeeded()?;

    output
        .out()
        .lines()
        .map(|line| {
            let (name, value) =
                line.split_once('=').with_context(|| format!("no fact: {line:?}\n{}", output.describe()))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        })
        .collect()
}

fn expect(output: &Output, expected: &[(&str, &str)]) -> Result<()> {
    let found = facts(output)?;
    for (name, value) in expected {
        let got = found.get(*name).map(String::as_str);
        ensure!(got == Some(*value), "{name} is {got:?}, expected {value:?}\n{}", output.describe());
    }
    Ok(())
}

fn process_settings(lease: &mut Lease) -> Result<()> {
    let script = r#"
        status() { awk -v name="$1:" '$1 == name { $1 = ""; print }' /proc/self/status; }
        echo uid=$(id -u); echo gid=$(id -g); echo groups=$(id -G); echo pwd=$PWD; echo env=$VARIABLE
        echo bounding=$(status CapBnd); echo effective=$(status CapEff); echo permitted=$(status CapPrm)
        echo ambient=$(status CapAmb); echo inheritable=$(status CapInh)
        echo nnp=$(status NoNewPrivs); echo oom=$(cat /proc/self/oom_score_adj); echo umask=$(umask)
        echo nofile=$(ulimit -Sn)/$(ulimit -Hn); echo core=$(ulimit -Hc); echo nproc=$(ulimit -Su)
        echo pid=$$; echo hostname=$(hostname)
        echo suid=$(touch /tmp/of-user && stat -c %u:%g /tmp/of-user)"#;
    let output = with_spec(lease, "settings", script, |spec| {
        let capabilities = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
        spec["process"]["user"] =
            json!({ "uid": 1234, "gid": 567, "additionalGids": [2000, 2001], "umask": 0o27 });
        spec["process"]["cwd"] = json!("/tmp");
        spec["process"]["env"] = json!([skep_tests::image::PATH, "VARIABLE=a b"]);
        spec["process"]["capabilities"] = json!({
            "bounding": capabilities, "permitted": capabilities, "effective": capabilities,
            "inheritable": capabilities, "ambient": capabilities,
        });
        spec["process"]["noNewPrivileges"] = json!(true);
        spec["process"]["oomScoreAdj"] = json!(321);
        spec["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 512 },
            { "type": "RLIMIT_NPROC", "soft": 77, "hard": 88 },
        ]);
        spec["hostname"] = json!("a-name");
    })?;
    expect(
        &output,
        &[
            ("uid", "1234"),
            ("gid", "567"),
            ("groups", "567 2000 2001"),
            ("pwd", "/tmp"),
            ("env", "a b"),
            ("bounding", "0000000000000401"),
            ("effective", "0000000000000401"),
            ("permitted", "0000000000000401"),
            ("ambient", "0000000000000401"),
            ("inheritable", "0000000000000401"),
            ("nnp", "1"),
            ("oom", "321"),
            ("umask", "0027"),
            ("nofile", "100/200"),
            // In blocks of 512 bytes.
            ("core", "1"),
            ("nproc", "77"),
            ("pid", "1"),
            ("hostname", "a-name"),
            ("suid", "1234:567"),
        ],
    )
}

fn paths_and_sysctls(lease: &mut Lease) -> Result<()> {
    let script = r"
        echo masked_directory=$(ls -A /sys/firmware | wc -l)
        echo masked_own=$(cat /etc/passwd | wc -c); echo masked_link=$(cat /etc/link | wc -c)
        echo masked_by_link=$(cat /etc/linked | wc -c); echo masked_tree=$(ls -A /etc/tree | wc -l); echo write_sys=$(echo 1 2>/dev/null >/proc/sys/kernel/panic && echo done || echo refused)
        echo write_own=$(echo 1 2>/dev/null >/etc/group && echo done || echo refused)
        echo write_tmp=$(echo 1 2>/dev/null >/tmp/file && echo done || echo refused)
        echo msgmax=$(cat /proc/sys/kernel/msgmax); echo forward=$(cat /proc/sys/net/ipv4/ip_forward)";
    let rootfs = lease.rootfs("paths")?;
    let etc = rootfs.join("etc");
    std::fs::write(etc.join("linked"), "secret\n")?;
    std::fs::create_dir(etc.join("tree"))?;
    std::fs::write(etc.join("tree/file"), "secret\n")?;
    // A mask follows links; one that leads nowhere is passed over.
    for (name, target) in [("link", "linked"), ("tree-link", "tree"), ("nowhere", "/none")] {
        std::os::unix::fs::symlink(target, etc.join(name))?;
    }
    let subject = lease.subject();
    let mut spec = subject.spec("paths", &rootfs, ["/bin/sh", "-c", script])?;
    {
        let spec = &mut spec;
        for path in ["/etc/passwd", "/etc/link", "/etc/tree-link", "/etc/nowhere"] {
            push(&mut spec["linux"]["maskedPaths"], json!(path));
        }
        push(&mut spec["linux"]["readonlyPaths"], json!("/etc/group"));
        spec["linux"]["sysctl"] = json!({ "kernel.msgmax": "16384", "net.ipv4.ip_forward": "1" });
    }
    let output = subject.run("paths").spec(&spec)?.output()?;
    expect(
        &output,
        &[
            ("masked_directory", "0"),
            ("masked_own", "0"),
            ("masked_link", "0"),
            ("masked_by_link", "0"),
            ("masked_tree", "0"),
            ("write_sys", "refused"),
            ("write_own", "refused"),
            ("write_tmp", "done"),
            ("msgmax", "16384"),
            ("forward", "1"),
        ],
    )
}

fn namespaces(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let script =
        "echo processes=$(ls /proc | grep -c '^[0-9]*$'); echo links=$(ls /sys/class/net | tr '\n' ' ')
        echo cgroup=$(cat /proc/self/cgroup | tail -n 1); echo self=$(readlink /proc/self/ns/pid)";
    let output = subject.sh("namespaces", script)?;
    let found = facts(&output)?;
    // The shell, its substitution and the two of the pipe at most: nothing of the host or the guest.
    ensure!(found["processes"].parse::<u32>()? <= 4 && found["links"] == "lo", "{}", output.describe());
    let own = std::fs::read_link("/proc/self/ns/pid")?;
    ensure!(Path::new(&found["self"]) != own, "{}", output.describe());
    Ok(())
}

/// Users of the container's own, by one range and by two: it is root of its files, and nothing outside.
fn user_namespaces(lease: &mut Lease) -> Result<()> {
    let script =
        "echo user=$(id -u):$(id -g); touch /made; echo owner=$(stat -c %u:%g /made /bin | tr '\n' ' ')
        echo ranges=$(tr -s ' ' </proc/self/uid_map | tr '\n' ,); su other -c 'echo other=$(id -u)'";
    for (id, ranges, root, expected) in [
        (
            "one",
            json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]),
            100_000,
            " 0 100000 65536,",
        ),
        (
            "two",
            json!([
                { "containerID": 0, "hostID": 0, "size": 10 },
                { "containerID": 10, "hostID": 100_000, "size": 65_530 },
            ]),
            0,
            " 0 0 10, 10 100000 65530,",
        ),
    ] {
        let rootfs = lease.rootfs(id)?;
        // runc's process looks the root up as the user that the container's root is.
        for parent in rootfs.ancestors().take_while(|path| *path != Path::new("/tmp")) {
            let mode = std::fs::metadata(parent)?.permissions().mode();
            std::fs::set_permissions(parent, Permissions::from_mode(mode | 0o011))?;
        }
        std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nother:x:34:34::/:/bin/sh\n")?;
        chown_tree(&rootfs, root)?;
        let subject = lease.subject();
        let mut spec = subject.spec(id, &rootfs, ["/bin/sh", "-c", script])?;
        push(&mut spec["linux"]["namespaces"], json!({ "type": "user" }));
        spec["linux"]["uidMappings"] = ranges.clone();
        spec["linux"]["gidMappings"] = ranges;
        let output = subject.run(id).spec(&spec)?.output()?;
        let facts = [("user", "0:0"), ("owner", "0:0 0:0"), ("ranges", expected.trim()), ("other", "34")];
        expect(&output, &facts).with_context(|| format!("with mapping {id}"))?;
        let made = std::fs::metadata(rootfs.join("made"))?;
        ensure!((made.uid(), made.gid()) == (root, root), "on the host it is {}:{}", made.uid(), made.gid());
    }
    Ok(())
}

/// Gives everything in a tree to a user and the group with its number, and keeps the modes.
fn chown_tree(tree: &Path, owner: u32) -> Result<()> {
    lchown(tree, Some(owner), Some(owner))?;
    for entry in std::fs::read_dir(tree)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            chown_tree(&entry.path(), owner)?;
        } else {
            lchown(entry.path(), Some(owner), Some(owner))?;
        }
    }
    Ok(())
}

fn seccomp(lease: &mut Lease) -> Result<()> {
    let script = "echo mode=$(awk '/^Seccomp:/ {print $2}' /proc/self/status)
        echo mkdir=$(mkdir /tmp/a 2>&1 && echo done); echo touch=$(touch /tmp/b && echo done)";
    let output = with_spec(lease, "seccomp", script, |spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            // EXDEV: an error that nothing else would give.
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 18 }],
        });
    })?;
    expect(
        &output,
        &[
            ("mode", "2"),
            ("mkdir", "mkdir: can't create directory '/tmp/a': Invalid cross-device link"),
            ("touch", "done"),
        ],
    )
}

fn devices(lease: &mut Lease) -> Result<()> {
    let script = "for name in null zero full random urandom tty; do echo $name=$(stat -c '%F %t:%T' /dev/$name); done
        echo zeroes=$(head -c 4 /dev/zero | od -An -tx1); echo write_full=$(echo 2>&1 >/dev/full | tail -c 24)
        echo own=$(stat -c '%F %t:%T %a %u' /dev/own); echo read=$(head -c 3 /dev/own | od -An -tx1)
        echo denied=$(mknod /dev/mem c 1 1 && head -c 1 /dev/mem 2>&1 >/dev/null | grep -c 'Operation not permitted')";
    let output = with_spec(lease, "devices", script, |spec| {
        spec["linux"]["devices"] = json!([
            { "path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 33, "gid": 44 }
        ]);
        push(
            &mut spec["linux"]["resources"]["devices"],
            json!(
                { "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm" }
            ),
        );
    })?;
    expect(
        &output,
        &[
            ("null", "character special file 1:3"),
            ("zero", "character special file 1:5"),
            ("full", "character special file 1:7"),
            ("random", "character special file 1:8"),
            ("urandom", "character special file 1:9"),
            ("tty", "character special file 5:0"),
            ("zeroes", "00 00 00 00"),
            ("write_full", "No space left on device"),
            ("own", "character special file 1:5 640 33"),
            ("read", "00 00 00"),
            ("denied", "1"),
        ],
    )
}

fn mounts_of_a_spec(lease: &mut Lease) -> Result<()> {
    let shared = lease.scratch("shared")?;
    std::fs::write(shared.join("given"), "from the host\n")?;
    let fixed = lease.scratch("fixed")?;
    std::fs::write(fixed.join("given"), "constant\n")?;
    std::fs::write(fixed.join("single"), "one file\n")?;
    let script = r"
        echo tmpfs=$(df -k /small | awk 'NR == 2 { print $2 }')
        echo tmpfs_mode=$(stat -c %a /small)
        echo shm=$(df -k /dev/shm | awk 'NR == 2 { print $2 }')
        echo shared=$(cat /shared/given)
        echo fixed=$(cat /fixed/given); echo single=$(cat /etc/single)
        echo write_fixed=$(echo 2>/dev/null >/fixed/given && echo done || echo refused)
        echo write_single=$(echo 2>/dev/null >/etc/single && echo done || echo refused)
        echo back >/shared/taken && echo wrote=done";
    let output = with_spec(lease, "mounts", script, |spec| {
        for mount in [
            json!({ "destination": "/small", "type": "tmpfs", "source": "tmpfs", "options": ["size=1024k", "mode=750"] }),
            json!({ "destination": "/shared", "type": "bind", "source": shared, "options": ["rbind", "rw"] }),
            json!({ "destination": "/fixed", "type": "bind", "source": fixed, "options": ["rbind", "ro"] }),
            json!({ "destination": "/etc/single", "type": "bind", "source": fixed.join("single"), "options": ["bind", "ro"] }),
        ] {
            push(&mut spec["mounts"], mount);
        }
    })?;
    expect(
        &output,
        &[
            ("tmpfs", "1024"),
            ("tmpfs_mode", "750"),
            ("shm", "65536"),
            ("shared", "from the host"),
            ("fixed", "constant"),
            ("single", "one file"),
            ("write_fixed", "refused"),
            ("write_single", "refused"),
            ("wrote", "done"),
        ],
    )?;
    ensure!(std::fs::read_to_string(shared.join("taken"))? == "back\n");
    ensure!(std::fs::read_to_string(fixed.join("given"))? == "constant\n");
    Ok(())
}

/// Skep only: the guest has cgroup v2 whatever the host has.
fn cgroup_limits(lease: &mut Lease) -> Result<()> {
    let script =
        "for name in memory.max pids.max cpu.max cpu.weight; do echo $name=$(cat /sys/fs/cgroup/$name); done";
    let output = with_spec(lease, "limits", script, |spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 67_108_864 });
        spec["linux"]["resources"]["pids"] = json!({ "limit": 33 });
        spec["linux"]["resources"]["cpu"] = json!({ "quota": 50_000, "period": 100_000, "shares": 1024 });
        push(
            &mut spec["mounts"],
            json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec"]
            }),
        );
        push(&mut spec["linux"]["namespaces"], json!({ "type": "cgroup" }));
    })?;
    expect(&output, &[("memory.max", "67108864"), ("pids.max", "33"), ("cpu.max", "50000 100000")])?;
    let weight = facts(&output)?["cpu.weight"].parse::<u32>()?;
    // 39 by the formula that runtimes had for long, 100 by the one of 2025.
    ensure!([39, 100].contains(&weight), "cpu.weight is {weight}");
    Ok(())
}

fn memory_limit_kills(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("memory").flags(["--memory-limit", "16777216"]);
    // The shell lives on and tells how its child ended.
    let output = run.sh("tail -c 100m /dev/zero >/dev/null; echo child=$?").output()?;
    ensure!(output.text()? == "child=137", "{}", output.describe());
    Ok(())
}

fn privileged(lease: &mut Lease) -> Result<()> {
    let script = "echo effective=$(awk '/^CapEff/ {print $2}' /proc/self/status)
        echo mount=$(mount -t tmpfs none /mnt 2>&1 && echo done); echo nnp=$(awk '/^NoNewPrivs/ {print $2}' /proc/self/status)";
    let rootfs = lease.rootfs("privileged")?;
    std::fs::create_dir(rootfs.join("mnt"))?;
    let subject = lease.subject();
    let mut spec = subject.spec("privileged", &rootfs, ["/bin/sh", "-c", script])?;
    let all = json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"]);
    spec["process"]["capabilities"] = json!({ "bounding": all, "permitted": all, "effective": all });
    spec["process"]["noNewPrivileges"] = json!(false);
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    let output = subject.run("privileged").spec(&spec)?.output()?;
    expect(&output, &[("effective", "0000000000281000"), ("mount", "done"), ("nnp", "0")])
}

/// What Docker, Podman and CNI plugins make inside a container: a bridge, and a network namespace behind it.
fn networks_within(lease: &mut Lease) -> Result<()> {
    let script = r"
        set -e
        ip link add br0 type bridge; ip addr add 10.77.0.1/24 dev br0; ip link set br0 up
        unshare -n sleep 1000 & within=$!
        while [ $(readlink /proc/$within/ns/net) = $(readlink /proc/self/ns/net) ]; do sleep 0.1; done
        ip link add v0 type veth; ip link set veth0 netns $within; brctl addif br0 v0; ip link set v0 up
        nsenter -t $within -n sh -c 'ip addr add 10.77.0.2/24 dev veth0; ip link set veth0 up'
        echo bridged=$(ls /sys/class/net/br0/brif)
        echo reached=$(for i in $(seq 30); do ping -c 1 -W 2 10.77.0.2 >/dev/null && break; done; echo $?)
        echo filtered=$(cat /proc/sys/net/bridge/bridge-nf-call-iptables)
        kill $within";
    let output = with_spec(lease, "networks", script, |spec| {
        let all = json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_KILL"]);
        spec["process"]["capabilities"] = json!({ "bounding": all, "permitted": all, "effective": all });
        spec["linux"]["seccomp"] = Value::Null;
    })?;
    expect(&output, &[("bridged", "v0"), ("reached", "0")])?;
    if lease.runtime == Runtime::Skep {
        // That of the guest's kernel; what the host's is built with is not ours.
        expect(&output, &[("filtered", "1")])?;
    }
    Ok(())
}

fn push(array: &mut Value, item: Value) {
    match array {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}
