//! A host that the plugin runs on, and the sandboxes that it attaches.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use super::{Jail, merge, plugin, sh};

/// A host: the machine's own stack, or a jail's; and the plugin's files.
pub struct Host<'a> {
    inside: Option<&'a Jail>,
    pub dir: tempfile::TempDir,
}

impl<'a> Host<'a> {
    pub fn new(inside: Option<&'a Jail>) -> Self {
        let host = Self { inside, dir: tempfile::tempdir().unwrap() };
        // What a test that failed left behind is in nobody's record.
        host.administer(&["gc", "--orphans"], "");
        host
    }

    pub fn conf(&self, name: &str, subnet: &str, more: Value) -> Value {
        let mut conf = json!({"cniVersion": "1.1.0", "name": name, "type": "skep-cni", "dataDir": self.data_dir(),
            "ipam": {"type": "skep", "subnet": subnet}});
        merge(&mut conf, more);
        conf
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Runs a script on this host; what it prints.
    pub fn sh(&self, script: &str) -> String {
        self.inside.map_or_else(|| sh(script), |jail| jail.sh(script))
    }

    fn program(&self) -> Command {
        match self.inside {
            Some(jail) => {
                let mut command = Command::new("/usr/sbin/jexec");
                command.arg(jail.id.to_string()).arg(plugin());
                command
            }
            None => Command::new(plugin()),
        }
    }

    fn talk(mut command: Command, input: &str) -> Output {
        let mut child: Child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Calls the plugin on this host.
    pub fn call(&self, verb: &str, id: &str, netns: &str, conf: &Value) -> Result<Value, Value> {
        self.call_with("", verb, id, netns, conf)
    }

    /// The same with `CNI_ARGS`.
    pub fn call_with(
        &self,
        args: &str,
        verb: &str,
        id: &str,
        netns: &str,
        conf: &Value,
    ) -> Result<Value, Value> {
        let mut command = self.program();
        // A jail within a jail has, seen from there, the last part of its name.
        let netns = if self.inside.is_some() { netns.rsplit('.').next().unwrap() } else { netns };
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env("CNI_ARGS", args)
            .env("CNI_PATH", "/nonexistent");
        let output = Self::talk(command, &conf.to_string());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        let text = String::from_utf8(output.stdout).unwrap();
        let value = if text.trim().is_empty() {
            json!({ "stderr": stderr })
        } else {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        if output.status.success() { Ok(value) } else { Err(value) }
    }

    /// An administrator's command; what it prints, and whether it was content.
    pub fn administer(&self, args: &[&str], input: &str) -> (bool, String) {
        let mut command = self.program();
        command.arg("--data-dir").arg(self.data_dir()).args(args);
        let output = Self::talk(command, input);
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&told).into_owned())
    }

    /// Starts an administrator's command that goes on until the value is dropped.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.program();
        command.arg("--data-dir").arg(self.data_dir()).args(args);
        Running(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// Attaches a new sandbox.
    pub fn add(&self, id: &str, conf: &Value) -> Container {
        let jail = self.inside.map_or_else(Jail::new, Jail::inner);
        let result =
            self.call("ADD", id, &jail.name, conf).unwrap_or_else(|error| panic!("ADD {id}: {error}"));
        Container { jail, id: id.to_owned(), result }
    }

    pub fn del(&self, container: &Container, conf: &Value) {
        self.call("DEL", &container.id, &container.jail.name, conf)
            .unwrap_or_else(|error| panic!("DEL {}: {error}", container.id));
    }

    pub fn check(&self, container: &Container, conf: &Value) -> Result<Value, Value> {
        self.call("CHECK", &container.id, &container.jail.name, conf)
    }
}

/// A program that runs; it ends with the value.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A sandbox on a network.
pub struct Container {
    pub jail: Jail,
    pub id: String,
    pub result: Value,
}

impl Container {
    pub fn ip(&self) -> String {
        self.address(0)
    }

    pub fn address(&self, n: usize) -> String {
        self.result["ips"][n]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
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
