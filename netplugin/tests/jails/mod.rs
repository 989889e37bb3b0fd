//! Hosts and sandboxes made of vnet jails, and packets to send between them.
//!
//! The machine's own network stack is the host of most tests; where several hosts are needed, they are vnet jails with
//! sandboxes of their own inside. Everything here takes root.

#![allow(dead_code, unreachable_pub, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]
#![allow(clippy::must_use_candidate, clippy::needless_pass_by_value)]

pub mod dhcp;
pub mod frames;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long a packet that should arrive may take. Generous: an emulated machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How long we listen for a packet that should not arrive.
pub const SILENCE: Duration = Duration::from_millis(1500);

/// How often a state is looked at that is waited for, and how long at most: nothing takes that long unless it never comes.
const LOOK: Duration = Duration::from_millis(500);
const AT_MOST: Duration = Duration::from_secs(600);

/// Waits for `holds`, which says what is so instead.
pub fn until(holds: impl Fn() -> Result<(), String>) {
    let begin = Instant::now();
    while let Err(instead) = holds() {
        assert!(begin.elapsed() < AT_MOST, "after {} s: {instead}", AT_MOST.as_secs());
        std::thread::sleep(LOOK);
    }
}

/// Where the plugin is: told by the environment, else beside the test.
pub fn plugin() -> PathBuf {
    std::env::var_os("SKEP_CNI")
        .map_or_else(|| std::env::current_exe().unwrap().with_file_name("skep-cni"), PathBuf::from)
}

/// The machine's network stack is one: tests take turns.
pub fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a command; what it prints.
pub fn run(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn sh(script: &str) -> String {
    run("/bin/sh", &["-ec", script])
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A vnet jail; gone with the value.
pub struct Jail {
    pub name: String,
    id: i32,
    servers: Mutex<Vec<i32>>,
}

impl Jail {
    pub fn new() -> Self {
        Self::named(&format!("t{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    fn named(name: &str) -> Self {
        let settings =
            ["vnet", "persist", "path=/", "allow.raw_sockets", "children.max=20", "enforce_statfs=0"];
        let name_setting = format!("name={name}");
        let args: Vec<&str> = ["-c", &name_setting].into_iter().chain(settings).collect();
        run("/usr/sbin/jail", &args);
        let id = run("/usr/sbin/jls", &["-j", name, "jid"]).trim().parse().unwrap();
        let jail = Self { name: name.to_owned(), id, servers: Mutex::new(Vec::new()) };
        jail.sh("ifconfig lo0 127.0.0.1/8 up");
        jail
    }

    /// A jail inside this one.
    pub fn inner(&self) -> Self {
        let name = format!("i{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sh(&format!("jail -c name={name} vnet persist path=/ allow.raw_sockets"));
        let full = format!("{}.{name}", self.name);
        let id = run("/usr/sbin/jls", &["-j", &full, "jid"]).trim().parse().unwrap();
        let jail = Self { name: full, id, servers: Mutex::new(Vec::new()) };
        jail.sh("ifconfig lo0 127.0.0.1/8 up");
        jail
    }

    pub fn sh(&self, script: &str) -> String {
        run("/usr/sbin/jexec", &[&self.id.to_string(), "/bin/sh", "-ec", script])
    }

    /// Runs `work` inside, in a process of its own; whether it said yes.
    pub fn ask(&self, work: impl FnOnce() -> bool) -> bool {
        let child = self.fork(work);
        let mut status = 0;
        // SAFETY: a child of ours.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }

    fn fork(&self, work: impl FnOnce() -> bool) -> i32 {
        // SAFETY: the child makes system calls, allocates (which FreeBSD allows it) and leaves by _exit.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                // SAFETY: no pointers.
                let entered = unsafe { libc::jail_attach(self.id) } == 0;
                let yes = entered && work();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(i32::from(!yes)) }
            }
            child => child,
        }
    }

    /// Runs `work` inside, in a process of its own; what it says.
    pub fn tell(&self, work: impl FnOnce() -> Option<String>) -> String {
        let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let yes = self.ask(|| work().is_some_and(|said| theirs.write_all(said.as_bytes()).is_ok()));
        drop(theirs);
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert!(yes, "nothing was said in jail {}", self.name);
        said
    }

    /// Runs `work` inside until the jail is gone.
    pub fn serve(&self, work: impl FnOnce()) {
        let child = self.fork(|| {
            work();
            true
        });
        self.servers.lock().unwrap().push(child);
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Answers TCP on a port until the jail is gone: each byte comes back.
    pub fn serve_tcp(&self, at: &str) {
        self.serve(|| {
            let Ok(listener) = TcpListener::bind(at) else { return };
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut stream = stream;
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
        self.serve(|| {
            let Ok(socket) = UdpSocket::bind(at) else { return };
            let mut buffer = [0; 2048];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
    }

    /// Whether TCP gets through, there and back.
    pub fn reaches(&self, to: &str) -> bool {
        self.ask(|| connects(to, PATIENCE))
    }

    /// Whether TCP does not get through, in a time in which it would have.
    pub fn blocked(&self, to: &str) -> bool {
        !self.ask(|| connects(to, SILENCE))
    }

    /// Whether UDP gets an answer, and it says that we came from `seen`.
    pub fn seen_as(&self, to: &str, seen: &str) -> bool {
        self.ask(|| asks(to, PATIENCE).is_some_and(|answer| answer == seen))
    }

    pub fn silent(&self, to: &str) -> bool {
        !self.ask(|| asks(to, SILENCE).is_some())
    }

    /// Opens a connection and keeps it; the parent asks whether it still carries bytes.
    pub fn hold(&self, to: &str) -> Held {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let to: SocketAddr = to.parse().unwrap();
        let child = self.fork(move || {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { return false };
            let mut control = theirs;
            let mut byte = [0];
            while let Ok(1) = control.read(&mut byte) {
                let patience = if byte == [1] { PATIENCE } else { SILENCE };
                let _ = stream.set_read_timeout(Some(patience));
                let alive = stream.write_all(b"x").is_ok() && matches!(stream.read(&mut [0]), Ok(1));
                if control.write_all(&[u8::from(alive)]).is_err() {
                    break;
                }
            }
            true
        });
        self.servers.lock().unwrap().push(child);
        Held { control: ours }
    }

    /// Ends it, and what serves in it; fine if it has ended.
    fn end(&self) {
        for child in self.servers.lock().unwrap().drain(..) {
            // SAFETY: children of ours that were not waited for yet.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
        }
        let _ = Command::new("/usr/sbin/jail").args(["-r", &self.name]).output();
    }

    /// A wire to another stack (none: the machine's own), with these addresses.
    pub fn wire(&self, other: Option<&Self>, own: &str, theirs: &str) -> (String, String) {
        let a = run("/sbin/ifconfig", &["epair", "create"]).trim().to_owned();
        let b = a.strip_suffix('a').map(|stem| format!("{stem}b")).unwrap();
        run("/sbin/ifconfig", &[&a, "vnet", &self.id.to_string()]);
        self.sh(&format!("ifconfig {a} inet {own} up"));
        match other {
            Some(other) => {
                run("/sbin/ifconfig", &[&b, "vnet", &other.id.to_string()]);
                other.sh(&format!("ifconfig {b} inet {theirs} up"));
            }
            None => drop(sh(&format!("ifconfig {b} inet {theirs} up"))),
        }
        (a, b)
    }

    /// Whether a frame with these bytes in it comes in on an interface in time, `work` being done meanwhile.
    pub fn hears(&self, interface: &str, needle: &[u8], patience: Duration, work: impl FnOnce()) -> bool {
        std::thread::scope(|scope| {
            let (listening, mut ready) = std::os::unix::net::UnixStream::pair().unwrap();
            let hearing =
                scope.spawn(move || self.ask(move || hears(interface, needle, patience, listening)));
            // Not before it listens, or cannot.
            let _ = ready.read(&mut [0]);
            work();
            hearing.join().unwrap()
        })
    }

    /// Sends frames on an interface as they are.
    pub fn inject(&self, interface: &str, frames: &[Vec<u8>]) {
        let sent = self.ask(|| {
            let Ok(mut bpf) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/bpf") else {
                return false;
            };
            let mut request = [0_u8; 32];
            request[..interface.len()].copy_from_slice(interface.as_bytes());
            let complete = 1_u32;
            let fd = std::os::fd::AsRawFd::as_raw_fd(&bpf);
            // SAFETY: BIOCSETIF (net/bpf.h) reads a struct ifreq of 32 bytes, BIOCSHDRCMPLT an unsigned.
            let ready = unsafe {
                libc::ioctl(fd, 0x8020_426c, request.as_ptr()) == 0
                    && libc::ioctl(fd, 0x8004_4275, &raw const complete) == 0
            };
            ready && frames.iter().all(|frame| bpf.write_all(frame).is_ok())
        });
        assert!(sent, "frames could not be sent on {interface}");
    }
}

/// Another node of a stretched network: a jail behind a wire, with a plain VXLAN link of the kernel's. In a jail no link can
/// be made, but one that was made outside works in the jail it was moved to.
pub struct Node {
    pub jail: Jail,
    here: (String, String),
    there: String,
}

impl Node {
    /// A wire between the machine, which gets the address `here`, and a jail, which gets `there`.
    pub fn new(here: &str, there: &str) -> Self {
        let jail = Jail::new();
        let (family, len) = if here.contains(':') { ("inet6", 64) } else { ("inet", 24) };
        let a = sh("ifconfig epair create").trim().to_owned();
        let b = a.strip_suffix('a').map(|stem| format!("{stem}b")).unwrap();
        sh(&format!(
            "ifconfig {a} vnet {name}; jexec {name} ifconfig {a} {family} {there}/{len} up; ifconfig {b} {family} {here}/{len} up; \
             [ {family} = inet ] || {{ jexec {name} ifconfig {a} inet6 -ifdisabled no_dad; ifconfig {b} inet6 -ifdisabled no_dad; }}",
            name = jail.name
        ));
        Self { jail, here: (b, here.to_owned()), there: there.to_owned() }
    }

    /// The node's link to the machine, with an address on the network.
    pub fn link(&self, vni: u32, address: &str) {
        let family = if address.contains(':') { "inet6" } else { "inet" };
        sh(&format!(
            "x=$(ifconfig vxlan create vxlanid {vni} vxlanlocal {there} vxlanremote {here}); ifconfig $x vnet {name}; \
             jexec {name} ifconfig $x {family} {address} up; jexec {name} ifconfig $x name far >/dev/null",
            there = self.there,
            here = self.here.1,
            name = self.jail.name,
        ));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A link comes back to the machine, which alone can remove it, when its jail ends.
        self.jail.end();
        let _ = Command::new("/sbin/ifconfig").args(["far", "destroy"]).output();
        let _ = Command::new("/sbin/ifconfig").args([&self.here.0, "destroy"]).output();
    }
}

/// A connection that is kept open inside a jail.
pub struct Held {
    control: std::os::unix::net::UnixStream,
}

impl Held {
    /// Whether it carries bytes, with patience.
    pub fn alive(&mut self) -> bool {
        self.carries(1)
    }

    /// Whether it carries none, in a time in which it would have.
    pub fn dead(&mut self) -> bool {
        !self.carries(0)
    }

    fn carries(&mut self, how: u8) -> bool {
        let mut answer = [0];
        self.control.write_all(&[how]).is_ok()
            && self.control.read_exact(&mut answer).is_ok()
            && answer[0] == 1
    }
}

fn hears(
    interface: &str,
    needle: &[u8],
    patience: Duration,
    mut listening: std::os::unix::net::UnixStream,
) -> bool {
    let all = [skep_ifnet::Insn { code: 0x06, jt: 0, jf: 0, k: u32::MAX }];
    let Ok(mut heard) = skep_ifnet::Capture::open(interface, &all) else { return false };
    let until = Instant::now() + patience;
    let _ = listening.write_all(&[1]);
    while let Ok(Some(frame)) = heard.next(until) {
        if frame.windows(needle.len()).any(|window| window == needle) {
            return true;
        }
    }
    false
}

fn connects(to: &str, patience: Duration) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    let Ok(mut stream) = TcpStream::connect_timeout(&to, patience) else { return false };
    let _ = stream.set_read_timeout(Some(patience));
    let mut buffer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut buffer).is_ok() && &buffer == b"ping"
}

/// Whether TCP gets through from the machine itself, there and back.
pub fn reaches_from_here(to: &str) -> bool {
    connects(to, PATIENCE)
}

/// Lists pf's anchors. pfctl gives up when one goes while it lists them: pf frees those that flows knew late.
pub const ANCHORS: &str = "n=0; until list=$(pfctl -qs Anchors -v); do n=$((n + 1)); [ $n -lt 10 ]; sleep 1; done; \
                           echo \"$list\"";

/// Whether TCP does not get through from the machine itself, in a time in which it would have.
pub fn blocked_from_here(to: &str) -> bool {
    !connects(to, SILENCE)
}

/// How many rules pf has looked at, since they were loaded, on its ways to these sandboxes: all lists that it can come by,
/// those of sandboxes that share a branch with one of them included. (To list everything takes an emulated machine minutes.)
pub fn evaluations(to: &[&Container]) -> u64 {
    let mut script = "list() { pfctl -q -a \"$1\" -vsr; pfctl -q -a \"$1\" -vsn; }\n\
                      below() { pfctl -q -a \"$1\" -s Anchors; }\n\
                      pfctl -q -vsr; pfctl -q -vsn; list skep; list skep/port; list skep/routed\n\
                      for net in $(below skep/net); do list $net; done\n"
        .to_owned();
    for one in to {
        let port = one.host_ifname();
        let (a, b) = (&port[3..4], &port[4..5]);
        let _ = writeln!(script, "list skep/port/{a}; list skep/routed/{a}");
        let _ = writeln!(script, "for one in $(below skep/port/{a}/{b}); do list $one; done");
    }
    sh(&script)
        .lines()
        .filter_map(|line| line.split_once("Evaluations:")?.1.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

fn asks(to: &str, patience: Duration) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
    socket.set_read_timeout(Some(patience)).ok()?;
    let mut buffer = [0; 64];
    socket.send_to(b"?", to).ok()?;
    let (n, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

impl Drop for Jail {
    fn drop(&mut self) {
        self.end();
    }
}

/// A host: the machine's own stack, or a jail's; and the plugin's files.
pub struct Host<'a> {
    inside: Option<&'a Jail>,
    pub dir: tempfile::TempDir,
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

    /// Everything there is that a teardown could forget.
    pub fn census(&self) -> String {
        let script = format!(
            "ifconfig -l; pfctl -qs rules; pfctl -qs nat; {ANCHORS}; pfctl -qs Tables; arp -an | \
             grep -v incomplete | grep permanent || true; netstat -rn | grep -v '^lo' | awk '{{print $1, $2, $4}}'"
        );
        let text = match self.inside {
            Some(jail) => jail.sh(&script),
            None => sh(&script),
        };
        text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")
    }

    /// The same after a sandbox has come and gone: the first call turns pf on and loads what it needs, which stays.
    pub fn census_after_first(&self, conf: &Value) -> String {
        let first = self.add("first", conf);
        self.del(&first, conf);
        self.census()
    }

    /// How many frames with a source that is not its own a container of the only network has sent.
    pub fn spoofed(&self, id: &str) -> u64 {
        let (_, told) = self.administer(&["status", "--json"], "");
        let status: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
        let all = status["networks"][0]["attachments"].as_array().unwrap();
        let one = all.iter().find(|one| one["containerId"] == id).unwrap();
        one["counters"]["spoofedPackets"].as_u64().unwrap()
    }

    /// Waits until there is nothing that was not there before. Less there may be: pf forgets an anchor when it has freed
    /// the last rule that a flow knew, perhaps an earlier test's.
    pub fn settles_to(&self, before: &str) {
        let more = || {
            let census = self.census();
            let more: Vec<String> = census
                .lines()
                .filter(|line| !before.lines().any(|old| old == *line))
                .map(str::to_owned)
                .collect();
            more
        };
        for _ in 0..60 {
            if more().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        assert_eq!(more(), Vec::<String>::new());
    }

    /// The plugin's files.
    pub fn files(&self) -> Vec<String> {
        let text =
            sh(&format!("find {} -type f ! -name lock 2>/dev/null || true", self.data_dir().display()));
        text.lines().map(str::to_owned).collect()
    }
}

/// Puts the fields of one object into another, objects into objects.
pub fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

pub fn open_policy() -> Value {
    json!({ "policy": { "egress": { "allow": ["any"] }, "ingress": { "allow": ["any"] } } })
}

pub fn policy(egress: Value, ingress: Value) -> Value {
    json!({ "policy": { "egress": egress, "ingress": ingress } })
}

/// A stack outside: 192.0.2.2, the machine has 192.0.2.1.
pub fn outside() -> (Jail, Wire) {
    let jail = Jail::new();
    let (_, here) = jail.wire(None, "192.0.2.2/24", "192.0.2.1/24");
    jail.sh("ifconfig lo0 alias 203.0.113.5/32; ifconfig lo0 alias 203.0.113.77/32; ifconfig lo0 alias 169.254.169.254/32");
    sh("route -q add 203.0.113.0/24 192.0.2.2; route -q add 169.254.0.0/16 192.0.2.2");
    (jail, Wire(here))
}

/// The machine's end of a wire: goes with the value.
pub struct Wire(String);

impl Drop for Wire {
    fn drop(&mut self) {
        sh(&format!(
            "route -q delete 203.0.113.0/24 || true; route -q delete 169.254.0.0/16 || true; ifconfig {} destroy || true",
            self.0
        ));
    }
}
