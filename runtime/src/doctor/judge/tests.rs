//! The judging of both systems, on either.

use super::super::facts::*;
use super::*;
use crate::config::{AccelChoice, Channel};
use crate::doctor::report::State;
use crate::hypervisor::qemu::Accel;

fn qemu() -> QemuFacts {
    QemuFacts {
        binary: "qemu-system-x86_64".into(),
        found: Some("/usr/bin/qemu-system-x86_64".into()),
        version: Ok("QEMU emulator version 7.2.0".into()),
        devices: Ok("name \"virtio-9p-pci\"\nname \"virtio-serial-pci\"\nname \"virtserialport\"\nname \"virtio-rng-pci\"".into()),
        accel_choice: AccelChoice::Auto,
        accel: Ok((Accel::Kvm, "the CPU has vmx".into())),
        channel: Channel::Console,
        vsock_backend: None,
        vsock_binary: "vhost-device-vsock".into(),
    }
}

fn bhyve() -> BhyveFacts {
    BhyveFacts {
        program: true,
        library: Ok("libvmmapi.so.7".into()),
        virtualisation: Virtualisation::Vmx,
        vmm: true,
        vmm_ready: Some(true),
        devfs: Ok(true),
        bhyve_snapshot: Ok(true),
        kernel_snapshot: Some(true),
    }
}

fn facts(hypervisor: HypervisorFacts, system: SystemFacts) -> Facts {
    Facts {
        root: true,
        config: ConfigFacts { file: "/etc/skep/config.toml".into(), exists: true, error: None },
        guest: Ok("linux 6.1".into()),
        freebsd_guest: Ok("freebsd 15.1".into()),
        hypervisor,
        memory: MemoryFacts { available_mib: Ok(4096), vm_mib: 256 },
        state_dir: StateDirFacts {
            path: "/run/skep".into(),
            existing: "/run".into(),
            fstype: Some("tmpfs".into()),
            filesystem: Ok(FilesystemFacts { read_only: false, nosuid: true, free_mib: 900 }),
            sandboxes: Some((0, 0o700)),
        },
        containerd: ContainerdFacts {
            socket: "/run/containerd/containerd.sock".into(),
            listening: Ok(()),
            program: Some("/usr/bin/containerd".into()),
            version: Some("containerd github.com/containerd/containerd v2.1.4 75cb2b7193e4".into()),
            config: "/etc/containerd/config.toml".into(),
            registered: Ok(Some(true)),
        },
        shim: ShimFacts {
            found: Some("/usr/local/bin/containerd-shim-skep-v2".into()),
            searched: "/usr/local/bin:/usr/bin".into(),
            of_containerd: true,
        },
        leftovers: Ok(0),
        system,
    }
}

fn linux() -> Facts {
    let modules = ["tun", "bridge", "br_netfilter", "nf_tables", "vxlan"];
    let system = LinuxFacts {
        distribution: vec!["debian".into()],
        modules: modules.map(|name| (name, Module::Present)).into(),
        ip_forward: Some(true),
        cgroup: Cgroup::V2,
    };
    facts(HypervisorFacts::Qemu(qemu()), SystemFacts::Linux(system))
}

fn freebsd_system() -> FreeBsdFacts {
    FreeBsdFacts {
        osreldate: Some(1_501_000),
        modules: ["nullfs", "if_tuntap", "if_bridge", "if_vxlan", "pf"].map(|name| (name, true)).into(),
        sysctls: ["net.link.bridge.pfil_member", "net.inet.ip.forwarding", "kern.features.vimage"]
            .map(|name| (name, Some(1)))
            .into(),
        pf: Ok(PfFacts { enabled: true, anchor: true, anchors: Some(4096) }),
    }
}

fn freebsd() -> Facts {
    facts(HypervisorFacts::Bhyve(bhyve()), SystemFacts::FreeBsd(freebsd_system()))
}

/// A check, how it comes out, words it says, and what is broken for it.
type Broken<T> = (&'static str, State, &'static [&'static str], fn(&mut T));

/// The check of that name, whose state and words are as given.
fn expect(facts: &Facts, id: &str, state: State, words: &[&str]) {
    let report = judge(facts);
    let check = report.checks.iter().find(|check| check.id == id).unwrap_or_else(|| panic!("no {id}"));
    assert_eq!(check.state, state, "{check:?}");
    let text = format!("{} {}", check.found, check.fix.as_deref().unwrap_or_default());
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    assert_eq!(report.ready, state != State::Missing, "{report}");
}

#[test]
fn on_a_healthy_host_of_either_system_nothing_is_to_be_done() {
    for facts in [linux(), freebsd()] {
        let report = judge(&facts);
        assert!(report.ready && report.checks.iter().all(|check| check.state == State::Ok), "{report}");
        let mut ids: Vec<_> = report.checks.iter().map(|check| check.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), report.checks.len(), "a name stands for one check");
    }
}

#[test]
fn what_every_host_needs() {
    let broken: [Broken<Facts>; 13] = [
        ("user", State::Missing, &["root"], |f| f.root = false),
        ("configuration", State::Missing, &["config.toml:3: foo", "skep config check"], |f| {
            f.config.error = Some("config.toml:3: foo".into());
        }),
        ("freebsd_guest", State::Warning, &["no guest", "cargo xtask freebsd guest"], |f| {
            f.freebsd_guest = Err("no guest in /y".into());
        }),
        ("guest", State::Missing, &["no guest", "cargo xtask guest"], |f| {
            f.guest = Err("no guest in /x".into());
        }),
        ("memory", State::Warning, &["100 MiB", "320 MiB", "memory_mib"], |f| {
            f.memory.available_mib = Ok(100);
        }),
        ("state_dir", State::Missing, &["/run/skep", "read-only", "state_dir"], |f| {
            f.state_dir.filesystem = Ok(FilesystemFacts { read_only: true, nosuid: true, free_mib: 9 });
        }),
        ("state_dir", State::Missing, &["1777", "chmod 700 /run/skep/sb"], |f| {
            f.state_dir.sandboxes = Some((0, 0o1777));
        }),
        ("state_dir", State::Missing, &["user 5"], |f| f.state_dir.sandboxes = Some((5, 0o700))),
        ("leftovers", State::Warning, &["2", "skep gc"], |f| f.leftovers = Ok(2)),
        ("containerd", State::Missing, &["containerd.sock", "refused"], |f| {
            f.containerd.listening = Err("refused".into());
        }),
        ("containerd", State::Warning, &["1.4.3", "1.6"], |f| {
            f.containerd.version = Some("containerd github.com/containerd/containerd 1.4.3 x".into());
        }),
        ("containerd.runtime", State::Warning, &["packaging/containerd/skep.toml"], |f| {
            f.containerd.registered = Ok(Some(false));
        }),
        ("shim", State::Missing, &["containerd-shim-skep-v2", "/usr/local/bin:/usr/bin"], |f| {
            f.shim.found = None;
        }),
    ];
    for (id, state, words, change) in broken {
        for mut facts in [linux(), freebsd()] {
            change(&mut facts);
            expect(&facts, id, state, words);
        }
    }
}

#[test]
fn containerd_is_got_as_the_system_does_it() {
    let broken = |mut facts: Facts, program: Option<&str>| {
        facts.containerd.listening = Err("no such file".into());
        facts.containerd.program = program.map(Into::into);
        facts
    };
    let cases = [
        (broken(linux(), None), "apt-get install containerd"),
        (broken(freebsd(), None), "pkg install containerd"),
        (broken(linux(), Some("/usr/bin/containerd")), "systemctl enable --now containerd"),
        (broken(freebsd(), Some("/usr/local/bin/containerd")), "service containerd start"),
    ];
    for (facts, fix) in cases {
        expect(&facts, "containerd", State::Missing, &[fix]);
    }
}

#[test]
fn versions_of_containerd_are_read() {
    for (text, version) in [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1", (1, 6)),
        ("containerd containerd.io v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376", (2, 1)),
        ("containerd github.com/containerd/containerd/v2 2.2.0", (2, 2)),
    ] {
        assert_eq!(number(text), Some(version), "{text}");
    }
    assert_eq!(number("containerd"), None);
}

#[test]
fn what_qemu_needs() {
    let broken: [Broken<QemuFacts>; 8] = [
        ("qemu", State::Missing, &["apt-get install qemu-system-x86", "qemu.binary"], |q| q.found = None),
        ("qemu", State::Missing, &["cannot execute"], |q| q.version = Err("cannot execute".into())),
        ("qemu.devices", State::Missing, &["without virtio-9p-pci, virtserialport"], |q| {
            q.devices = Ok("name \"virtio-rng-pci\" name \"virtio-serial-pci\"".into());
        }),
        ("kvm", State::Warning, &["neither vmx nor svm", "firmware"], |q| {
            q.accel = Ok((Accel::Tcg, "neither vmx nor svm".into()));
        }),
        ("kvm", State::Ok, &["as qemu.accel"], |q| {
            q.accel = Ok((Accel::Tcg, "qemu.accel".into()));
            q.accel_choice = AccelChoice::Tcg;
        }),
        ("kvm", State::Missing, &["no /dev/kvm", "qemu.accel = \"auto\""], |q| {
            q.accel = Err("no /dev/kvm".into());
            q.accel_choice = AccelChoice::Kvm;
        }),
        ("vhost_device_vsock", State::Missing, &["vhost-device-vsock not found"], |q| {
            q.channel = Channel::Vsock;
        }),
        ("vhost_device_vsock", State::Ok, &["/usr/bin/v"], |q| {
            q.channel = Channel::Vsock;
            q.vsock_backend = Some("/usr/bin/v".into());
        }),
    ];
    for (id, state, words, change) in broken {
        let mut qemu = qemu();
        change(&mut qemu);
        let facts = Facts { hypervisor: HypervisorFacts::Qemu(qemu), ..linux() };
        expect(&facts, id, state, words);
    }
    // Nothing more is said of a program that is not there.
    let facts = Facts { hypervisor: HypervisorFacts::Qemu(QemuFacts { found: None, ..qemu() }), ..linux() };
    assert!(!judge(&facts).checks.iter().any(|check| check.id == "qemu.devices"));
}

#[test]
fn what_bhyve_needs() {
    let broken: [Broken<BhyveFacts>; 10] = [
        ("bhyve", State::Missing, &["/usr/sbin/bhyve"], |b| b.program = false),
        ("libvmmapi", State::Missing, &["libvmmapi.so.7", "FreeBSD 14 or 15"], |b| {
            b.library = Err("no libvmmapi.so.7".into());
        }),
        ("cpu", State::Missing, &["VMX", "firmware"], |b| b.virtualisation = Virtualisation::None),
        ("cpu", State::Missing, &["NPT"], |b| {
            b.virtualisation = Virtualisation::Svm { nested_paging: false };
        }),
        ("cpu", State::Ok, &["SVM"], |b| b.virtualisation = Virtualisation::Svm { nested_paging: true }),
        ("vmm", State::Missing, &["kldload vmm", "sysrc kld_list+=vmm"], |b| b.vmm = false),
        ("nested_paging", State::Missing, &["dmesg"], |b| b.vmm_ready = Some(false)),
        ("devfs", State::Missing, &["mount -t devfs"], |b| b.devfs = Ok(false)),
        ("bhyve_snapshot", State::Warning, &["WITH_BHYVE_SNAPSHOT"], |b| b.bhyve_snapshot = Ok(false)),
        ("bhyve_snapshot", State::Warning, &["not in the kernel"], |b| b.kernel_snapshot = Some(false)),
    ];
    for (id, state, words, change) in broken {
        let mut bhyve = bhyve();
        change(&mut bhyve);
        let facts = Facts { hypervisor: HypervisorFacts::Bhyve(bhyve), ..freebsd() };
        expect(&facts, id, state, words);
    }
}

#[test]
fn what_networks_need() {
    let broken: [Broken<LinuxFacts>; 4] = [
        ("kernel.vxlan", State::Ok, &["modprobe vxlan"], |l| l.modules[4].1 = Module::Loadable),
        ("kernel.br_netfilter", State::Warning, &["no br_netfilter"], |l| l.modules[2].1 = Module::Absent),
        ("kernel.nf_tables", State::Warning, &["nothing"], |l| l.modules[3].1 = Module::Unknown),
        ("cgroup", State::Warning, &["/sys/fs/cgroup"], |l| l.cgroup = Cgroup::None),
    ];
    for (id, state, words, change) in broken {
        let mut facts = linux();
        let SystemFacts::Linux(system) = &mut facts.system else { unreachable!() };
        change(system);
        expect(&facts, id, state, words);
    }
    let broken: [Broken<FreeBsdFacts>; 9] = [
        ("freebsd", State::Missing, &["1302001", "14"], |f| f.osreldate = Some(1_302_001)),
        ("kernel.if_bridge", State::Warning, &["kldload if_bridge", "sysrc"], |f| f.modules[2].1 = false),
        ("kernel.nullfs", State::Ok, &["mount"], |f| f.modules[0].1 = false),
        ("net.link.bridge.pfil_member", State::Warning, &["sysctl net.link.bridge.pfil_member=1"], |f| {
            f.sysctls[0].1 = Some(0);
        }),
        ("kern.features.vimage", State::Warning, &["VIMAGE"], |f| f.sysctls[2].1 = None),
        ("pf", State::Warning, &["service pf start"], |f| f.pf = Err("no /dev/pf".into())),
        ("pf", State::Warning, &["disabled", "pf_enable=YES"], |f| {
            f.pf = Ok(PfFacts { enabled: false, anchor: true, anchors: Some(4096) });
        }),
        ("pf.anchor", State::Warning, &["anchor \"skep\"", "/etc/pf.conf"], |f| {
            f.pf = Ok(PfFacts { enabled: true, anchor: false, anchors: Some(4096) });
        }),
        ("pf.anchors", State::Warning, &["512", "set limit anchors"], |f| {
            f.pf = Ok(PfFacts { enabled: true, anchor: true, anchors: Some(512) });
        }),
    ];
    for (id, state, words, change) in broken {
        let mut system = freebsd_system();
        change(&mut system);
        expect(&Facts { system: SystemFacts::FreeBsd(system), ..freebsd() }, id, state, words);
    }
}
