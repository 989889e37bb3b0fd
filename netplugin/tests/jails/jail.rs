//! Vnet jails, and what runs in them.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{run, sh};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A vnet jail; gone with the value.
pub struct Jail {
    pub name: String,
    pub(super) id: i32,
    pub(super) servers: Mutex<Vec<i32>>,
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

    pub(super) fn fork(&self, work: impl FnOnce() -> bool) -> i32 {
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

    /// Ends it, and what serves in it; fine if it has ended.
    pub(super) fn end(&self) {
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
}

impl Drop for Jail {
    fn drop(&mut self) {
        self.end();
    }
}
