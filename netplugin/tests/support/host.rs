//! A host that the plugin runs on, and the containers that it attaches.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Ns, merge};

/// A host: a namespace, and the plugin's files.
pub struct Host {
    pub ns: Ns,
    pub dir: tempfile::TempDir,
}

/// A container on a network.
pub struct Container {
    pub ns: Ns,
    pub id: String,
    pub result: Value,
}

impl Container {
    pub fn ip(&self) -> String {
        self.address(0)
    }

    pub fn address(&self, n: usize) -> String {
        let text = self.result["ips"][n]["address"].as_str().unwrap();
        text.split('/').next().unwrap().to_owned()
    }

    pub fn mac(&self) -> [u8; 6] {
        let text = self.result["interfaces"][2]["mac"].as_str().unwrap();
        let mut octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap());
        std::array::from_fn(|_| octets.next().unwrap())
    }

    pub fn host_ifname(&self) -> String {
        self.result["interfaces"][1]["name"].as_str().unwrap().to_owned()
    }
}

impl Host {
    pub fn new() -> Self {
        // In memory where there is such a place, as the default directory is.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { ns: Ns::new(), dir }
    }

    /// A configuration with our allocator and these parts besides.
    pub fn conf(&self, name: &str, subnet: &str, more: Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": name, "type": "skep-cni", "dataDir": self.data_dir(),
            "ipam": { "type": "skep", "subnet": subnet },
        });
        merge(&mut conf, more);
        conf
    }

    /// The network of most tests, `pods`, which is 10.1.0.0/24, with these parts besides.
    pub fn pods(&self, more: Value) -> Value {
        self.conf("pods", "10.1.0.0/24", more)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Calls the plugin on this host.
    pub fn call(
        &self,
        verb: &str,
        id: &str,
        ifname: &str,
        netns: &str,
        conf: &Value,
    ) -> Result<Value, Value> {
        self.call_with(env!("CARGO_BIN_EXE_skep-cni"), verb, id, ifname, netns, conf)
    }

    /// Calls the plugin on this host with more in its environment.
    pub fn call_as(
        &self,
        more: &[(&str, &str)],
        verb: &str,
        id: &str,
        ifname: &str,
        netns: &str,
        conf: &Value,
    ) -> Result<Value, Value> {
        self.call_any(env!("CARGO_BIN_EXE_skep-cni"), more, [verb, id, ifname, netns], conf)
    }

    /// Calls any plugin on this host.
    pub fn call_with(
        &self,
        binary: &str,
        verb: &str,
        id: &str,
        ifname: &str,
        netns: &str,
        conf: &Value,
    ) -> Result<Value, Value> {
        self.call_any(binary, &[], [verb, id, ifname, netns], conf)
    }

    fn call_any(
        &self,
        binary: &str,
        more: &[(&str, &str)],
        [verb, id, ifname, netns]: [&str; 4],
        conf: &Value,
    ) -> Result<Value, Value> {
        let output = self.ns.run(|| {
            let mut child = Command::new(binary)
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", id)
                .env("CNI_IFNAME", ifname)
                .env("CNI_NETNS", netns)
                .env("CNI_PATH", "/usr/lib/cni:/opt/cni/bin")
                .envs(more.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let text = String::from_utf8(output.stdout).unwrap();
        let value = if text.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        if output.status.success() { Ok(value) } else { Err(value) }
    }

    /// Attaches a new container.
    pub fn add(&self, id: &str, conf: &Value) -> Container {
        let ns = Ns::new();
        let result = self
            .call("ADD", id, "eth0", &ns.path(), conf)
            .unwrap_or_else(|error| panic!("ADD {id}: {error}"));
        Container { ns, id: id.to_owned(), result }
    }

    pub fn del(&self, container: &Container, conf: &Value) {
        self.call("DEL", &container.id, "eth0", &container.ns.path(), conf)
            .unwrap_or_else(|error| panic!("DEL {}: {error}", container.id));
    }

    pub fn check(&self, container: &Container, conf: &Value) -> Result<Value, Value> {
        self.call("CHECK", &container.id, "eth0", &container.ns.path(), conf)
    }

    /// Connects the host to a namespace outside: 192.0.2.1 and 2001:db8::1 here, .2 and ::2 there.
    pub fn outside(&self) -> Ns {
        let outside = Ns::new();
        self.ns.wire("out0", &outside, "out1");
        for (ns, link, n) in [(&self.ns, "out0", 1), (&outside, "out1", 2)] {
            ns.ip(&format!("addr add 192.0.2.{n}/24 dev {link}"));
            ns.ip(&format!("addr add 2001:db8::{n}/64 dev {link} nodad"));
            ns.settle(&format!("2001:db8::{n}"));
        }
        outside
    }

    /// Flows of UDP are remembered as long as a test takes. Unanswered ones would be for half a minute, which is little on a
    /// slow machine.
    pub fn remember_flows(&self) {
        self.ns.set_sysctl("netfilter/nf_conntrack_udp_timeout", "3600");
    }

    /// The plugin's files.
    pub fn files(&self) -> Vec<String> {
        fn walk(dir: &std::path::Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    walk(&entry.path(), found);
                } else if entry.file_name() != "lock" {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.data_dir(), &mut found);
        found.sort();
        found
    }
}
