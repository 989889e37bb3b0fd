//! `skep net`: networks declared once and carried to their hosts by a real ssh.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::flow::Flow;
use support::{Container, Host, Ns, PATIENCE, open_policy};

const SKEP: &str = env!("CARGO_BIN_EXE_skep-cni");

/// Hosts on one wire, all but the first with an sshd.
struct Site {
    switch: Ns,
    hosts: Vec<Host>,
    keys: tempfile::TempDir,
    servers: Vec<Option<Child>>,
}

impl Drop for Site {
    fn drop(&mut self) {
        for server in self.servers.iter_mut().flatten() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Site {
    fn new(count: usize) -> Self {
        let switch = Ns::new();
        switch.ip("link add sw type bridge mcast_snooping 0");
        switch.ip("link set sw up");
        let keys = tempfile::tempdir().unwrap();
        for key in ["host", "user"] {
            let path = keys.path().join(key);
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&path)
                .status()
                .unwrap();
            assert!(made.success());
        }
        let mut site = Self {
            switch,
            hosts: (0..count).map(|_| Host::new()).collect(),
            keys,
            servers: (0..count).map(|_| None).collect(),
        };
        for n in 0..count {
            let ns = &site.hosts[n].ns;
            ns.wire("u0", &site.switch, &format!("p{n}"));
            site.switch.ip(&format!("link set p{n} master sw"));
            ns.ip(&format!("addr add {}/24 dev u0", v4(n)));
            ns.ip(&format!("addr add {}/64 dev u0 nodad", v6(n)));
            ns.settle(&v6(n));
            if n > 0 {
                site.serve(n);
            }
        }
        site
    }

    /// Starts a host's sshd. It sees the host's files at /mnt, and nobody else's.
    fn serve(&mut self, n: usize) {
        let keys = self.keys.path().display();
        let config = self.keys.path().join(format!("sshd{n}"));
        fs::write(
            &config,
            format!(
                "Port 22\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\nStrictModes no\nUsePAM no\n\
                 PermitRootLogin prohibit-password\nPidFile none\n"
            ),
        )
        .unwrap();
        let shadow = self.keys.path().join("shadow");
        fs::write(&shadow, "root:*:19000:0:99999:7:::\n").unwrap();
        let script = format!(
            "mount --bind {} /mnt && mount --bind {} /etc/shadow && mount -t tmpfs none /run && mkdir /run/sshd && \
             exec /usr/sbin/sshd -D -e -f {}",
            self.hosts[n].dir.path().display(),
            shadow.display(),
            config.display()
        );
        let server = self.hosts[n].ns.run(|| {
            Command::new("unshare")
                .args(["-m", "sh", "-ec", &script])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        self.servers[n] = Some(server);
        let answers = self.hosts[n].ns.connect(&format!("{}:22", v4(n)), PATIENCE);
        assert!(answers.is_some(), "sshd does not answer");
    }

    fn stop(&mut self, n: usize) {
        let mut server = self.servers[n].take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Types a command on a host: exit status, output, complaint.
    fn skep(&self, n: usize, args: &str, input: &str) -> (bool, String, String) {
        let dir = self.hosts[n].dir.path();
        let dirs = ["etc", "cni", "state"].map(|name| dir.join(name).display().to_string());
        let mut words = vec!["--config-dir", dirs[0].as_str(), "--cni-dir", &dirs[1], "--data-dir", &dirs[2]];
        words.extend(args.split(' '));
        let output = self.hosts[n].ns.command(SKEP, &words, input);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert!(!err.contains("panicked"), "{err}");
        (output.status.success(), out, err)
    }

    fn done(&self, n: usize, args: &str) -> String {
        let (ok, out, err) = self.skep(n, args, "");
        assert!(ok, "{args}: {out}{err}");
        out
    }

    /// Carries the declaration from the first host; each node's outcome, and the exit status.
    fn sync(&self, more: &str) -> (bool, Vec<Value>) {
        let keys = self.keys.path().display();
        let dirs = "--config-dir /mnt/etc --cni-dir /mnt/cni --data-dir /mnt/state";
        let args = [
            "sync",
            "vpc",
            "--json",
            "--timeout",
            "120",
            "--remote",
            &format!("{SKEP} {dirs}"),
            "-o",
            "StrictHostKeyChecking=accept-new",
            "-o",
            &format!("UserKnownHostsFile={keys}/known"),
            "-o",
            &format!("IdentityFile={keys}/user"),
            "-o",
            "IdentitiesOnly=yes",
        ];
        let dir = self.hosts[0].dir.path();
        let local = ["etc", "cni", "state"].map(|name| dir.join(name).display().to_string());
        let mut words =
            vec!["--config-dir", local[0].as_str(), "--cni-dir", &local[1], "--data-dir", &local[2]];
        words.extend(args);
        words.extend(more.split_ascii_whitespace());
        let output = self.hosts[0].ns.command(SKEP, &words, "");
        let reports = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.success(), reports)
    }

    /// The configuration that a runtime on the host finds.
    fn conf(&self, n: usize) -> Value {
        let path = self.hosts[n].dir.path().join("cni/skep-vpc.conflist");
        let mut list: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let mut plugin = list["plugins"][0].take();
        plugin["name"] = list["name"].take();
        plugin["cniVersion"] = list["cniVersion"].take();
        plugin["dataDir"] = json!(self.hosts[n].data_dir());
        // On a real host it is where it says; here each host's /mnt is elsewhere.
        let file = plugin["vxlan"]["file"].as_str().unwrap().to_owned();
        plugin["vxlan"]["file"] =
            json!(file.replace("/mnt", &self.hosts[n].dir.path().display().to_string()));
        plugin
    }

    fn add(&self, n: usize, id: &str) -> Container {
        self.hosts[n].add(id, &self.conf(n))
    }

    fn policy_file(&self) -> PathBuf {
        let path = self.keys.path().join("config.json");
        fs::write(&path, open_policy().to_string()).unwrap();
        path
    }
}

fn v4(n: usize) -> String {
    format!("198.51.100.{}", n + 1)
}

fn v6(n: usize) -> String {
    format!("2001:db8:1::{:x}", n + 1)
}

fn outcomes(reports: &[Value]) -> Vec<(&str, &str)> {
    reports.iter().map(|one| (one["node"].as_str().unwrap(), one["outcome"].as_str().unwrap())).collect()
}

#[test]
fn a_network_is_declared_once_and_carried_to_its_hosts() {
    needs_root!();
    let mut site = Site::new(3);
    for host in &site.hosts {
        // Stays as the plugin sets it, and brings routes with it.
        host.ns.set_sysctl("ipv6/conf/all/forwarding", "1");
    }
    let before: Vec<_> = site.hosts.iter().map(|host| host.ns.census()).collect();
    let node = |n: usize| format!("n{n}={},{}", v4(n), v6(n));
    site.done(
        0,
        &format!(
            "create vpc --vni 100 --subnet 10.1.0.0/16 --subnet fd01::/64 --node {} --node {} --config {}",
            node(0),
            node(1),
            site.policy_file().display()
        ),
    );
    let (ok, reports) = site.sync("");
    assert!(ok, "{reports:?}");
    assert_eq!(outcomes(&reports), [("n0", "unchanged"), ("n1", "changed")]);
    let (a, b) = (site.add(0, "a"), site.add(1, "b"));
    // Each gives out addresses of its own.
    assert_eq!((a.ip(), b.ip()), ("10.1.1.0".to_owned(), "10.1.2.0".to_owned()));
    assert_eq!((a.address(1), b.address(1)), ("fd01::100:0:0:0".into(), "fd01::200:0:0:0".into()));
    b.ns.serve_tcp("[::]:80");
    assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    assert!(a.ns.reaches(&format!("[{}]:80", b.address(1))));

    // One more, while packets flow between the first two.
    let flow = Flow::start(&a.ns, &b.ns, &b.ip());
    site.done(0, &format!("node add vpc {}", node(2)));
    let (ok, reports) = site.sync("");
    assert!(ok, "{reports:?}");
    assert_eq!(outcomes(&reports), [("n0", "unchanged"), ("n1", "changed"), ("n2", "changed")]);
    let c = site.add(2, "c");
    assert_eq!(c.ip(), "10.1.3.0");
    assert!(c.ns.reaches(&format!("{}:80", b.ip())));
    assert!(site.sync("").0, "again");

    // A host that does not answer, and then does.
    site.stop(2);
    site.done(0, &format!("node add vpc n3={}", v4(3)));
    let (ok, reports) = site.sync("--node n0 --node n1 --node n2");
    assert!(!ok);
    assert_eq!(outcomes(&reports), [("n0", "unchanged"), ("n1", "changed"), ("n2", "failed")]);
    assert!(reports[2]["why"].as_str().unwrap().contains("Connection refused"), "{reports:?}");
    site.serve(2);
    let (ok, reports) = site.sync("--node n1 --node n2");
    assert!(ok, "{reports:?}");
    assert_eq!(outcomes(&reports), [("n1", "unchanged"), ("n2", "changed")]);

    // Two leave.
    site.done(0, "node remove vpc n2 n3");
    let (ok, reports) = site.sync("");
    assert!(!ok, "{reports:?}");
    assert_eq!(outcomes(&reports), [("n0", "unchanged"), ("n1", "changed"), ("n2", "failed")]);
    assert!(reports[2]["why"].as_str().unwrap().contains("has sandboxes"), "{reports:?}");
    assert!(c.ns.blocked(&format!("{}:80", b.ip())));
    assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    let (sent, lost) = flow.finish();
    assert!(sent > 100 && lost == 0, "{lost} of {sent} packets of a flow between the others were lost");

    // What is there is shown; what has sandboxes is not deleted.
    let status: Value = serde_json::from_str(&site.done(0, "status --json")).unwrap();
    let network = &status["networks"][0];
    assert_eq!(network["links"][0]["peers"], json!([{"name": "n1", "address": v4(1)}]));
    assert!(network["links"][0]["carried"]["receivedBytes"].as_u64().unwrap() > 1000);
    assert!(site.done(0, "status").contains(&format!("to n1 ({})", v4(1))));
    let (ok, _, err) = site.skep(0, "delete vpc", "");
    assert!(!ok && err.contains("has sandboxes"), "{err}");
    // Without sandboxes, the one that left has nothing of it as soon as it is told.
    site.hosts[2].del(&c, &site.conf(2));
    site.stop(2);
    let (ok, reports) = site.sync("");
    assert!(!ok && outcomes(&reports)[2] == ("n2", "failed"), "{reports:?}");
    site.serve(2);
    let (ok, reports) = site.sync("");
    assert!(ok, "{reports:?}");
    assert_eq!(outcomes(&reports), [("n0", "unchanged"), ("n1", "unchanged"), ("n2", "left")]);
    assert_eq!(outcomes(&site.sync("").1).len(), 2, "it is told once");
    let clean = |n: usize| {
        assert_eq!(site.hosts[n].ns.census(), before[n]);
        assert_eq!(site.hosts[n].files(), Vec::<String>::new());
        for dir in ["etc", "etc/vxlan", "etc/known", "cni"] {
            let mut left = fs::read_dir(site.hosts[n].dir.path().join(dir)).into_iter().flatten().flatten();
            assert!(left.all(|entry| entry.path().is_dir() || entry.file_name() == "lock"), "{dir}");
        }
    };
    clean(2);
    for (n, container) in [&a, &b].into_iter().enumerate() {
        site.hosts[n].del(container, &site.conf(n));
        site.done(n, "delete vpc");
        clean(n);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    needs_root!();
    let site = Site::new(3);
    let create = |more: &str| format!("create vpc --vni 100 --subnet 10.1.0.0/16 --node n0={} {more}", v4(0));
    // ssh is given no options by a declaration.
    let (ok, _, err) = site.skep(0, &create("--node x=192.0.2.1,ssh=-oProxyCommand=touch"), "");
    assert!(!ok && err.contains("ssh"), "{err}");
    assert!(!site.hosts[0].dir.path().join("etc").exists());
    // A host that is not the node it is taken for.
    site.done(0, &create(&format!("--node n1={},ssh=root@{}", v4(1), v4(2))));
    let (ok, reports) = site.sync("");
    assert!(!ok);
    assert!(reports[1]["why"].as_str().unwrap().contains("this host has not the address"), "{reports:?}");
    assert!(!site.hosts[2].dir.path().join("cni").exists());
    // Two people change the same revision.
    let shown = site.done(0, "show vpc");
    let right = shown
        .replace(&format!("root@{}", v4(2)), &format!("root@{}", v4(1)))
        .replace("\"revision\": 1", "\"revision\": 2");
    for n in [0, 1] {
        let (ok, out, err) = site.skep(n, "install", &right);
        assert!(ok, "{out}{err}");
    }
    let a = site.add(0, "a");
    site.done(0, &format!("node add vpc n2={}", v4(2)));
    site.done(1, &format!("node add vpc other={}", v4(2)));
    let (ok, reports) = site.sync("--node n1");
    assert!(!ok);
    assert!(reports[0]["why"].as_str().unwrap().contains("somebody else changed it too"), "{reports:?}");
    let (ok, _, err) = site.skep(0, "install", &right);
    assert!(!ok && err.contains("it is older"), "{err}");
    // Sandboxes keep their addresses.
    let moved = site
        .done(0, "show vpc")
        .replace("10.1.0.0", "10.2.0.0")
        .replace("\"revision\": 3", "\"revision\": 4");
    let (ok, _, err) = site.skep(0, "install", &moved);
    assert!(!ok && err.contains("cannot change while the network has sandboxes"), "{err}");
    // What cannot be made is as it was: the interface that another bridge would need is a wire.
    let files = |n: usize| {
        ["etc/vpc.json", "etc/vxlan/vpc.json", "cni/skep-vpc.conflist"]
            .map(|name| fs::read_to_string(site.hosts[n].dir.path().join(name)).unwrap())
    };
    let kept = files(0);
    let census = site.hosts[0].ns.census();
    let mut bad: Value = serde_json::from_str(&site.done(0, "show vpc")).unwrap();
    bad["revision"] = json!(9);
    bad["config"]["mtu"] = json!(9000);
    let (ok, _, err) = site.skep(0, "install", &bad.to_string());
    assert!(!ok && err.contains("mtu"), "{err}");
    assert_eq!(files(0), kept);
    assert_eq!(site.hosts[0].ns.census(), census);
    site.hosts[0].check(&a, &site.conf(0)).unwrap();
    // After a reboot the network is made again from its files.
    site.hosts[0].del(&a, &site.conf(0));
    let (ok, _, err) = site.skep(0, "down vpc", "");
    assert!(ok, "{err}");
    site.done(0, "apply");
    assert!(site.done(0, "status").contains("network vpc"));
    assert!(site.done(0, "list").contains("10.1.0.0/16"));
}

#[test]
fn groups_are_declared_carried_and_not_taken_from_live_sandboxes() {
    needs_root!();
    let site = Site::new(3);
    let config = site.keys.path().join("config.json");
    let policy = json!({"policy": {"annotations": true, "egress": {"allow": ["any"]}, "ingress": {"allow": [{"group": "web"}]}}});
    fs::write(&config, policy.to_string()).unwrap();
    let create = |more: &str| {
        let nodes: Vec<_> = (0..3).map(|n| format!("--node n{n}={}", v4(n))).collect();
        let (nodes, config) = (nodes.join(" "), config.display());
        format!("create vpc --vni 100 --subnet 10.1.0.0/16 {nodes} --config {config}{more}")
    };
    let (ok, _, err) = site.skep(0, &create(" --group db"), "");
    assert!(!ok && err.contains("group `web` is not declared on this network (declared: db)"), "{err}");
    let (ok, _, err) = site.skep(0, &create(" --group a/b"), "");
    assert!(!ok && err.contains("not a group's name"), "{err}");
    site.done(0, &create(" --group web --group db"));
    let shown: Value = serde_json::from_str(&site.done(0, "show vpc")).unwrap();
    assert_eq!((&shown["maxGroups"], &shown["maxNodes"]), (&json!(7), &json!(63)));
    assert!(site.sync("").0);
    let add = |n: usize, id: &str, group: &str| {
        let mut conf = site.conf(n);
        conf["runtimeConfig"] =
            json!({"io.kubernetes.cri.pod-annotations": {"network.skep.org/group": group}});
        site.hosts[n].add(id, &conf)
    };
    let (db, web) = (add(0, "db", "db"), add(1, "web", "web"));
    db.ns.serve_tcp("0.0.0.0:80");
    assert!(web.ns.reaches(&format!("{}:80", db.ip())));
    let other = site.add(2, "other");
    assert!(other.ns.blocked(&format!("{}:80", db.ip())));
    assert_eq!([&db, &web, &other].map(Container::ip), ["10.1.64.128", "10.1.33.0", "10.1.1.128"]);
    let status = site.done(0, "status");
    assert!(
        status.contains("group db  10.1.64.0/19  1 here")
            && status.contains("group web  10.1.32.0/19  0 here"),
        "{status}"
    );
    let status: Value = serde_json::from_str(&site.done(0, "status --json")).unwrap();
    assert_eq!(status["networks"][0]["groups"], json!({"db": ["10.1.64.0/19"], "web": ["10.1.32.0/19"]}));

    // A new group is in effect without disturbing anybody.
    let flow = Flow::start(&web.ns, &db.ns, &db.ip());
    site.done(0, "group add vpc cache");
    let (ok, reports) = site.sync("");
    assert!(ok, "{reports:?}");
    let cache = add(2, "cache", "cache");
    assert!(cache.ns.blocked(&format!("{}:80", db.ip())));
    // No host that has sandboxes of it gives it up, and what it had there is still true.
    let (ok, _, err) = site.skep(0, "group remove vpc db", "");
    assert!(!ok && err.contains("container `db`: group `db` is not declared"), "{err}");
    site.done(0, "group remove vpc cache");
    let (ok, reports) = site.sync("");
    assert!(!ok);
    assert_eq!(outcomes(&reports), [("n0", "unchanged"), ("n1", "changed"), ("n2", "failed")]);
    assert!(reports[2]["why"].as_str().unwrap().contains("container `cache`"), "{reports:?}");
    site.hosts[2].check(&cache, &site.conf(2)).unwrap();
    site.hosts[2].del(&cache, &site.conf(2));
    let (ok, reports) = site.sync("");
    assert!(ok, "{reports:?}");
    let (sent, lost) = flow.finish();
    assert!(sent > 50 && lost == 0, "{lost} of {sent} packets of a flow of the others were lost");
    // The name has its number for good.
    site.done(0, "group add vpc queue cache");
    let shown: Value = serde_json::from_str(&site.done(0, "show vpc")).unwrap();
    let numbers = json!([{"name": "web", "id": 1}, {"name": "db", "id": 2}, {"name": "queue", "id": 4}, {"name": "cache", "id": 3}]);
    assert_eq!(shown["groups"], numbers);
    let (ok, _, err) = site.skep(0, "group add vpc cache", "");
    assert!(!ok && err.contains("`cache` is one of them already"), "{err}");
}
