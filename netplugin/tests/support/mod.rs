//! Hosts, containers and wires made of network namespaces, and packets to send between them.
//!
//! A namespace here has no name and no file: it is a descriptor of this process, gone with it. The machine's own
//! namespace is never touched, so tests run side by side.

// No test uses all of it.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]
#![allow(clippy::cast_possible_truncation, reason = "lengths of frames made here")]
#![allow(
    clippy::doc_markdown,
    clippy::cast_possible_wrap,
    clippy::needless_pass_by_value,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use
)]

mod conf;
pub mod flow;
pub mod frames;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

pub use conf::{merge, open_policy, policy};

/// How long may take what must happen. A machine can be slow, and waiting ends with what is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long we listen for a packet that should not arrive. A test shows first that such a packet would.
pub const SILENCE: Duration = Duration::from_millis(300);
/// How long we wait for an answer before we ask again: a network that has just come up may lose the first question.
pub const AGAIN: Duration = Duration::from_secs(1);

/// Waits for something that becomes so in time; whether it did.
pub fn comes(is_so: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Tests of this kind make network namespaces, which takes root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
    };
}

/// A network namespace.
pub struct Ns {
    file: File,
}

impl Ns {
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let ns = Self { file };
        ns.ip("link set lo up");
        // Link-local addresses of wires become usable at once, not while a test counts what there is.
        ns.set_sysctl("ipv6/conf/default/accept_dad", "0");
        ns
    }

    /// A path by which other processes find it while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `work` inside on a thread of its own, and does not wait for it.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = self.file.try_clone().unwrap();
        thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    pub fn command(&self, program: &str, args: &[&str], input: &str) -> Output {
        self.run(|| {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{program}: {error}"));
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        })
    }

    fn checked(&self, program: &str, args: &[&str], input: &str) -> String {
        let output = self.command(program, args, input);
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn ip(&self, args: &str) -> String {
        self.checked("ip", &args.split(' ').collect::<Vec<_>>(), "")
    }

    pub fn nft(&self, script: &str) -> String {
        self.checked("nft", &["-f", "-"], script)
    }

    pub fn ruleset(&self) -> String {
        self.checked("nft", &["list", "ruleset"], "")
    }

    pub fn sysctl(&self, path: &str) -> String {
        self.run(|| std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim().to_owned())
    }

    pub fn set_sysctl(&self, path: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap());
    }

    /// Waits until a link is up and its own IPv6 address in use: the kernel gets round to both after it was told to.
    pub fn settle_link(&self, name: &str) {
        let settled = || {
            self.ip(&format!("-br link show {name}")).contains(" UP ")
                && self
                    .ip("-6 route show table local")
                    .lines()
                    .any(|route| route.starts_with("local fe80:") && route.contains(&format!(" dev {name} ")))
        };
        assert!(comes(settled), "{name} never came up");
    }

    /// A wire to another namespace, both ends up and all done that the kernel does of itself then: what is sent before that
    /// is lost, and what is counted before that is not all.
    pub fn wire(&self, name: &str, other: &Self, other_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {}", other.path()));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {other_name} up"));
        self.settle_link(name);
        other.settle_link(other_name);
    }

    /// Waits until an IPv6 address is in use: the kernel gets round to it after the link is up.
    pub fn settle(&self, address: &str) {
        let used = || self.ip("-6 route show table local").contains(&format!("local {address} "));
        assert!(comes(used), "{address} never came into use");
    }

    /// Everything there is that a teardown could forget, without what packets count while they are on their way.
    pub fn census(&self) -> String {
        let links = self.ip("-br link");
        let addresses = self.ip("-br addr");
        let neighbours = self.ip("neigh show nud permanent");
        let routes = format!("{}{}", self.ip("route show table all"), self.ip("-6 route show table all"));
        // The order of addresses and the state of links are not ours to judge.
        let names: Vec<&str> = links.lines().filter_map(|line| line.split_whitespace().next()).collect();
        format!("{names:?}\n{addresses}\n{neighbours}\n{routes}\n{}", without_counts(&self.ruleset()))
    }

    /// Answers TCP on a port, for as long as the test runs: each byte comes back.
    pub fn serve_tcp(&self, at: &str) {
        let listener = self.run(|| TcpListener::bind(at).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                thread::spawn(move || {
                    let mut buffer = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
    }

    /// Answers UDP on a port with the address it saw the question come from.
    pub fn serve_udp(&self, at: &str) {
        let socket = self.run(|| UdpSocket::bind(at).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
    }

    /// A TCP connection, if one comes about in time. Who has no answer to who has an address (ARP) for three seconds gives
    /// up, whatever time there is: that is tried again.
    pub fn connect(&self, to: &str, patience: Duration) -> Option<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let deadline = Instant::now() + patience;
        self.run(|| {
            loop {
                let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
                if let Ok(stream) = TcpStream::connect_timeout(&to, left) {
                    stream.set_read_timeout(Some(patience)).unwrap();
                    return Some(stream);
                }
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    /// Whether TCP gets through, there and back.
    pub fn reaches(&self, to: &str) -> bool {
        self.connect(to, PATIENCE).is_some_and(|mut stream| echoes(&mut stream))
    }

    /// Whether TCP does not get through, in a time in which it would have.
    pub fn blocked(&self, to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| TcpStream::connect_timeout(&to, SILENCE).is_err())
    }

    /// Asks by UDP, again and again where there is time; what the other side saw as our address.
    pub fn ask_udp(&self, to: &str, patience: Duration) -> Option<IpAddr> {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.run(|| UdpSocket::bind(any).unwrap());
        let answer = asked(&socket, b"?", to, patience)?;
        String::from_utf8_lossy(&answer).parse().ok()
    }
}

/// A ruleset whose counters have no numbers.
fn without_counts(ruleset: &str) -> String {
    let mut before = "";
    let words = ruleset.split_inclusive(char::is_whitespace).filter(|word| {
        let number = word.trim_end().trim_end_matches(',');
        let counted = matches!(before.trim_end(), "packets" | "bytes") && number.parse::<u64>().is_ok();
        before = word;
        !counted
    });
    words.collect()
}

/// Asks by UDP, again and again where there is time; the answer.
pub fn asked(
    socket: &UdpSocket,
    question: &[u8],
    to: impl ToSocketAddrs,
    patience: Duration,
) -> Option<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 64];
    loop {
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        socket.set_read_timeout(Some(left.min(AGAIN))).unwrap();
        // What the network says of a lost question may be said here.
        let _ = socket.send_to(question, &to);
        if let Ok((n, _)) = socket.recv_from(&mut buffer) {
            return Some(buffer[..n].to_vec());
        }
    }
}

/// Whether a connection carries bytes.
pub fn echoes(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut buffer).is_ok() && &buffer == b"ping"
}

/// A program that ends with the test.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
