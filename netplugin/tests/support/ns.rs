//! Network namespaces, the wires between them, and what the kernel has in them.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns, unshare};

use super::comes;

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
