use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType as Type;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const GUEST_DIR: &str = "/run/skep/share/0123456789ab";

/// What `ctr run` of containerd 1.6 on Linux (cgroup v1) sends.
fn linux() -> Value {
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "args": ["/bin/echo", "hi"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "newinstance"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}
        ],
        "annotations": {"some.host/thing": "/var/lib/thing"},
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "cgroupsPath": "/default/t1",
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
            ],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

/// What containerd on FreeBSD sends for a Linux image.
fn freebsd() -> Value {
    let mut spec = linux();
    spec["mounts"] = json!([
        {"destination": "/proc", "type": "linprocfs", "source": "linprocfs"},
        {"destination": "/sys", "type": "linsysfs", "source": "linsysfs"},
        {"destination": "/dev", "type": "devfs", "source": "devfs", "options": ["ruleset=4"]},
        {"destination": "/dev/fd", "type": "fdescfs", "source": "fdescfs"},
        {"destination": "/data", "type": "nullfs", "source": "/srv/data", "options": ["ro"]}
    ]);
    spec
}

fn probe(path: &Path) -> io::Result<(PathBuf, SourceKind)> {
    let text = path.to_str().unwrap();
    let kind = match text {
        _ if text.contains("missing") => return Err(io::ErrorKind::NotFound.into()),
        _ if path.extension().is_some_and(|e| e == "sock") => SourceKind::Socket,
        _ if path.extension().is_some_and(|e| e == "fifo") => SourceKind::Fifo,
        _ if text.starts_with("/dev/s") && !text.starts_with("/dev/shm") => SourceKind::Device,
        _ if path.extension().is_some_and(|e| e == "conf") => SourceKind::File,
        "/link-to-proc" => return Ok(("/proc".into(), SourceKind::Directory)),
        _ => SourceKind::Directory,
    };
    Ok((path.into(), kind))
}

fn run_in(spec: Value, sandbox_pids: &[u32]) -> Result<GuestSpec, SpecError> {
    let context = Context {
        id: "t1",
        bundle: Path::new("/bundle"),
        guest_dir: GUEST_DIR,
        sandbox_pids,
        os: GuestOs::Linux,
        freebsd: None,
    };
    rewrite(serde_json::from_value(spec).unwrap(), &context, &probe)
}

fn run(spec: Value) -> Result<GuestSpec, SpecError> {
    run_in(spec, &[])
}

fn refusal(spec: Value) -> String {
    run(spec).unwrap_err().to_string()
}

fn with_mount(mount: Value) -> Value {
    let mut spec = linux();
    spec["mounts"].as_array_mut().unwrap().push(mount);
    spec
}

fn kinds(spec: &Spec) -> Vec<Type> {
    spec.linux()
        .as_ref()
        .unwrap()
        .namespaces()
        .iter()
        .flatten()
        .map(oci_spec::runtime::LinuxNamespace::typ)
        .collect()
}

#[test]
fn what_means_the_same_stays() {
    let before: Spec = serde_json::from_value(linux()).unwrap();
    let after = run(linux()).unwrap();
    assert_eq!(after.spec.process(), before.process());
    assert_eq!(after.spec.mounts(), before.mounts());
    let (old, new) = (before.linux().as_ref().unwrap(), after.spec.linux().as_ref().unwrap());
    assert_eq!(new.masked_paths(), old.masked_paths());
    assert_eq!(new.readonly_paths(), old.readonly_paths());
    assert_eq!(new.resources(), old.resources());
    assert!(after.notes.is_empty(), "{:?}", after.notes);
}

#[test]
fn what_is_the_hosts_is_replaced() {
    let after = run(linux()).unwrap();
    assert_eq!(after.spec.root().as_ref().unwrap().path(), Path::new("/run/skep/share/0123456789ab/rootfs"));
    assert_eq!(after.hostname.as_deref(), Some("box"));
    assert_eq!(after.spec.hostname(), &None);
    assert_eq!(after.spec.annotations(), &None);
    let linux = after.spec.linux().as_ref().unwrap();
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/skep/t1")));
    assert_eq!(kinds(&after.spec), [Type::Pid, Type::Mount, Type::Cgroup]);
}

#[test]
fn namespaces_of_the_host_are_refused_by_name() {
    for (kind, word) in [("network", "--net-host"), ("pid", "hostPID"), ("ipc", "hostIPC"), ("uts", "uts")] {
        let mut spec = linux();
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
        let error = refusal(spec);
        assert!(
            error.contains("linux.namespaces") && error.contains(kind) && error.contains(word),
            "{error}"
        );
    }
    for kind in ["pid", "ipc", "uts", "mount", "user"] {
        let mut spec = linux();
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|n| n["type"] != kind);
        list.push(json!({"type": kind, "path": "/proc/1/ns/x"}));
        let error = refusal(spec);
        assert!(error.contains("/proc/1/ns/x"), "{kind}: {error}");
    }
}

#[test]
fn a_network_namespace_with_a_path_is_taken_over() {
    assert_eq!(run(linux()).unwrap().network, NetworkRequest::Own);
    let mut spec = linux();
    let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != "network");
    list.push(json!({"type": "network", "path": "/run/netns/a"}));
    let after = run(spec).unwrap();
    assert_eq!(after.network, NetworkRequest::Join("/run/netns/a".into()));
    assert_eq!(kinds(&after.spec), [Type::Pid, Type::Mount, Type::Cgroup]);
}

#[test]
fn a_member_of_a_pod_shares_what_the_sandbox_has() {
    let mut spec = linux();
    spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"},
        {"type": "ipc", "path": "/proc/77/ns/ipc"},
        {"type": "uts", "path": "/proc/77/ns/uts"},
        {"type": "network", "path": "/proc/77/ns/net"}
    ]);
    assert_eq!(kinds(&run_in(spec.clone(), &[5, 77]).unwrap().spec), [Type::Pid, Type::Mount, Type::Cgroup]);
    assert_eq!(run_in(spec.clone(), &[5, 77]).unwrap().network, NetworkRequest::Own);
    assert!(run_in(spec.clone(), &[7]).is_err());
    spec["linux"]["namespaces"][0] = json!({"type": "pid", "path": "/proc/77/ns/pid"});
    assert_eq!(kinds(&run_in(spec.clone(), &[5, 77]).unwrap().spec), [Type::Mount, Type::Cgroup]);
    spec["linux"]["namespaces"][1] = json!({"type": "mount", "path": "/proc/77/ns/mnt"});
    assert!(run_in(spec, &[5, 77]).is_err());
}

#[test]
fn binds_are_shared_under_numbers() {
    let mut spec = with_mount(
        json!({"destination": "/etc/resolv.conf", "type": "bind", "source": "/run/x/resolv.conf", "options": ["rbind", "ro"]}),
    );
    spec["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/data", "type": "none", "source": "data", "options": ["bind", "rslave", "ro", "rw", "noexec"]}),
    );
    let after = run(spec).unwrap();
    assert_eq!(
        after.volumes,
        [
            Volume {
                source: "/run/x/resolv.conf".into(),
                directory: false,
                readonly: true,
                recursive: true,
                follows_host: false,
                name: "mounts/0".into()
            },
            Volume {
                source: "/bundle/data".into(),
                directory: true,
                readonly: false,
                recursive: false,
                follows_host: true,
                name: "mounts/1".into()
            },
        ]
    );
    let mounts = after.spec.mounts().as_ref().unwrap();
    let last = &mounts[mounts.len() - 1];
    assert_eq!(last.source().as_deref(), Some(Path::new("/run/skep/share/0123456789ab/mounts/1")));
    assert_eq!(last.typ().as_deref(), Some("bind"));
    assert_eq!(last.options().as_ref().unwrap(), &["rbind", "rprivate", "ro", "rw", "noexec"]);
}

#[test]
fn mounts_that_cannot_be_are_refused_by_name() {
    let bind = |source: &str, options: Value| {
        with_mount(json!({"destination": "/x", "type": "bind", "source": source, "options": options}))
    };
    for (spec, words) in [
        (bind("/run/docker.sock", json!(["rbind"])), ["mounts[7].source", "/run/docker.sock", "socket"]),
        (bind("/run/a.fifo", json!(["rbind"])), ["mounts[7].source", "/run/a.fifo", "FIFO"]),
        (bind("/dev/sda", json!(["rbind"])), ["mounts[7].source", "/dev/sda", "device"]),
        (bind("/sys/fs/bpf", json!(["rbind"])), ["mounts[7].source", "/sys/fs/bpf", "kernel"]),
        (bind("/link-to-proc", json!(["rbind"])), ["mounts[7].source", "/link-to-proc", "kernel"]),
        (bind("/missing", json!(["rbind"])), ["mounts[7].source", "/missing", "not found"]),
        (bind("/srv", json!(["rbind", "rshared"])), ["mounts[7].options", "rshared", "/x"]),
        (bind("/srv", json!(["rbind", "idmap"])), ["mounts[7].options", "id-mapped", "/x"]),
        (
            with_mount(json!({"destination": "/n", "type": "nfs", "source": "h:/e"})),
            ["mounts[7]", "/n", "nfs"],
        ),
        (
            with_mount(json!({"destination": "/a/../../b", "type": "tmpfs", "source": "t"})),
            ["mounts[7].destination", "..", "root"],
        ),
    ] {
        let error = refusal(spec);
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
}

#[test]
fn shm_of_the_host_becomes_the_guests() {
    let spec = with_mount(
        json!({"destination": "/dev/shm", "type": "bind", "source": "/run/pod/shm", "options": ["rbind"]}),
    );
    let after = run(spec).unwrap();
    assert!(after.volumes.is_empty());
    assert_eq!(
        after.spec.mounts().as_ref().unwrap().last().unwrap().source().as_deref(),
        Some(Path::new("/dev/shm"))
    );
    assert_eq!(after.notes.len(), 1);
}

#[test]
fn freebsd_mounts_become_the_linux_set() {
    let after = run(freebsd()).unwrap();
    let mounts: Vec<(String, String)> = after
        .spec
        .mounts()
        .iter()
        .flatten()
        .map(|m| (m.destination().display().to_string(), m.typ().clone().unwrap()))
        .collect();
    let expected = [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
        ("/run", "tmpfs"),
        ("/data", "bind"),
    ];
    assert_eq!(mounts, expected.map(|(destination, kind)| (destination.to_owned(), kind.to_owned())));
    assert!(after.volumes[0].readonly);
}

#[test]
fn options_of_freebsds_tmpfs_are_those_of_linux() {
    let mut spec = freebsd();
    let options = ["rw", "size=1m", "mode=1700", "inodes=20", "nosuid", "noexec", "pgread", "maxfilesize=5"];
    let mount = json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": options});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    let after = run(spec).unwrap();
    let mount = after.spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/t")).unwrap();
    let expected = ["nosuid", "nodev", "size=1m", "mode=1700", "nr_inodes=20", "noexec"];
    assert_eq!(mount.options().as_deref().unwrap(), expected.map(str::to_owned));
    for left_out in ["pgread", "maxfilesize=5"] {
        assert!(after.notes.iter().any(|note| note.contains(left_out)), "{:?}", after.notes);
    }
}

/// As containerd's CRI plugin sends it with a volume that follows the host.
#[test]
fn recursive_propagation_of_the_root_has_the_specifications_name() {
    for (given, wanted) in
        [("rslave", "slave"), ("rshared", "shared"), ("private", "private"), ("rude", "rude")]
    {
        let mut spec = linux();
        spec["linux"]["rootfsPropagation"] = json!(given);
        let spec = run(spec).unwrap().spec;
        assert_eq!(spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(), Some(wanted));
    }
}

#[test]
fn devices() {
    let mut spec = linux();
    spec["linux"]["devices"] = json!([
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}
    ]);
    let error = refusal(spec.clone());
    assert!(error.contains("linux.devices[1]") && error.contains("/dev/sda"), "{error}");
    // Privileged: the guest's devices, all of them.
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let after = run(spec).unwrap();
    assert_eq!(after.spec.linux().as_ref().unwrap().devices().as_ref().unwrap().len(), 1);
    assert_eq!(after.notes.len(), 1);
}

#[test]
fn limits_that_a_guest_lacks() {
    for (pointer, value) in [
        ("blockIO", json!({"weight": 10})),
        ("hugepageLimits", json!([{"pageSize": "2MB", "limit": 1}])),
        ("network", json!({"classID": 5})),
        ("rdma", json!({"mlx": {"hcaHandles": 3}})),
    ] {
        let mut spec = linux();
        spec["linux"]["resources"][pointer] = value;
        assert!(refusal(spec).contains(&format!("linux.resources.{pointer}")));
    }
    // Empty ones limit nothing: containerd's CRI plugin sends them.
    let mut spec = linux();
    spec["linux"]["resources"]["blockIO"] = json!({});
    spec["linux"]["resources"]["hugepageLimits"] = json!([]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 1 << 26, "swap": 1 << 27});
    let after = run(spec).unwrap();
    let resources = after.spec.linux().as_ref().unwrap().resources().clone().unwrap();
    assert_eq!(resources.block_io(), &None);
    assert_eq!(resources.memory().as_ref().unwrap().swap(), None);
    assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1 << 26));
}

#[test]
fn hooks_go_where_they_run() {
    let mut spec = linux();
    spec["hooks"] = json!({"createRuntime": [{"path": "/usr/bin/nerdctl"}], "poststop": [{"path": "/x"}]});
    assert_eq!(run(spec.clone()).unwrap().spec.hooks(), &None);
    spec["hooks"]["startContainer"] = json!([{"path": "/bin/in-root"}]);
    let guest = run(spec.clone()).unwrap().spec.hooks().clone().unwrap();
    assert_eq!(guest.start_container().as_ref().unwrap()[0].path(), Path::new("/bin/in-root"));
    assert!(guest.create_runtime().is_none() && guest.poststop().is_none());
    spec["hooks"]["createContainer"] = json!([{"path": "/usr/bin/hook"}]);
    let error = refusal(spec);
    assert!(error.contains("hooks.createContainer[0]") && error.contains("/usr/bin/hook"), "{error}");
}

#[test]
fn processes() {
    let change = |key: &str, value: Value| {
        let mut spec = linux();
        spec["process"][key] = value;
        spec
    };
    assert!(refusal(change("args", json!([]))).contains("process.args"));
    assert!(refusal(change("cwd", json!("tmp"))).contains("process.cwd"));
    let after = run(change("apparmorProfile", json!("cri-containerd.apparmor.d"))).unwrap();
    assert_eq!(after.spec.process().as_ref().unwrap().apparmor_profile(), &None);
    assert_eq!(after.notes.len(), 1);
}

#[test]
fn other_systems_are_refused() {
    let mut spec = linux();
    spec["linux"].take();
    assert!(refusal(spec).contains("linux: missing"));
    let mut spec = linux();
    spec["vm"] = json!({"kernel": {"path": "/boot/vmlinux"}});
    assert!(refusal(spec).contains("vm"));
}

#[test]
fn domain_name_reaches_the_sandbox() {
    let mut spec = linux();
    spec["domainname"] = json!("example");
    let after = run(spec).unwrap();
    let linux = after.spec.linux().as_ref().unwrap();
    assert_eq!(linux.sysctl().as_ref().unwrap()["kernel.domainname"], "example");
}

fn any_mount() -> impl Strategy<Value = Value> {
    let kinds = prop::sample::select(vec![
        "bind",
        "none",
        "tmpfs",
        "proc",
        "nullfs",
        "devfs",
        "linprocfs",
        "fdescfs",
        "ext4",
        "overlay",
        "",
    ]);
    let sources = prop::sample::select(vec![
        "/srv/a",
        "/srv/b",
        "relative",
        "/run/x.sock",
        "/etc/h.conf",
        "/missing",
        "/proc",
        "",
        "/dev/shm/x",
        "../up",
    ]);
    let options = prop::collection::vec(
        prop::sample::select(vec![
            "ro", "rw", "bind", "rbind", "rslave", "rprivate", "rshared", "nosuid", "idmap",
        ]),
        0..4,
    );
    let destinations = prop::sample::select(vec!["/a", "/a/b", "/dev/shm", "/dev", "/../x", "", "rel"]);
    (kinds, sources, options, destinations)
        .prop_map(|(t, s, o, d)| json!({"destination": d, "type": t, "source": s, "options": o}))
}

proptest! {
    /// Whatever is asked for: a refusal names a field, and what is accepted names nothing of the host, while every
    /// volume is used by exactly one mount.
    #[test]
    fn no_path_of_the_host_is_left(mounts in prop::collection::vec(any_mount(), 0..6)) {
        let mut spec = linux();
        spec["mounts"].as_array_mut().unwrap().extend(mounts);
        match run(spec) {
            Err(error) => prop_assert!(error.to_string().starts_with("config.json: mounts["), "{}", error),
            Ok(after) => {
                let mut used = Vec::new();
                for mount in after.spec.mounts().iter().flatten() {
                    let source = mount.source().clone().unwrap_or_default();
                    if mount.typ().as_deref() == Some("bind") && source == Path::new("/dev/shm") {
                        prop_assert_eq!(mount.destination().as_path(), Path::new("/dev/shm"));
                    } else if mount.typ().as_deref() == Some("bind") {
                        let below = source.strip_prefix(GUEST_DIR).unwrap().to_str().unwrap().to_owned();
                        used.push(below);
                        prop_assert!(!mount.options().iter().flatten().any(|o| o.ends_with("slave")));
                    } else {
                        prop_assert!(!mount.options().iter().flatten().any(|o| o == "bind" || o == "rbind"));
                        prop_assert!(!["ext4", "overlay", "nullfs", "devfs", "linprocfs", "fdescfs"]
                            .contains(&mount.typ().as_deref().unwrap_or_default()));
                    }
                }
                let names: Vec<String> = after.volumes.iter().map(|v| v.name.clone()).collect();
                prop_assert_eq!(used, names);
                for volume in &after.volumes {
                    prop_assert!(volume.source.is_absolute());
                }
            }
        }
    }
}
