//! What it takes to replace a list.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::json;
use skep_cni::datapath::{Datapath as _, Host as Kernel};
use skep_cni::network::Store;
use skep_cni::plugin;
use skep_cni::policy::Policy;

use crate::jails::{Host, alone, open_policy, run};
use crate::{anchor_of, median, ratio, timed};

/// A thousand addresses: the lists of even and of odd rounds have all but the first `differ` in common.
fn thousand(differ: usize, round: usize) -> Vec<Ipv4Addr> {
    let second = |n: usize| if n < differ { 18 + (round % 2) as u8 } else { 18 };
    (0..1000).map(|n| Ipv4Addr::new(198, second(n), (n / 250) as u8, (n % 250 + 1) as u8)).collect()
}

/// A policy that denies some addresses.
fn denying(addresses: &[Ipv4Addr]) -> Policy {
    serde_json::from_value(json!({"egress": {"deny": addresses, "allow": ["any"]}})).unwrap()
}

/// pf(4)'s request to replace what is in a table, with all of it ready.
mod raw {
    use std::fs::{File, OpenOptions};
    use std::net::Ipv4Addr;
    use std::os::fd::AsRawFd as _;

    /// `struct pfr_addr` of net/pfvar.h.
    #[repr(C)]
    struct Address {
        ip: [u8; 16],
        family: u8,
        prefix: u8,
        not: u8,
        feedback: u8,
    }

    /// `struct pfioc_table` of net/pfvar.h.
    #[repr(C)]
    struct Request {
        anchor: [u8; 1024],
        name: [u8; 32],
        kept: u32,
        feedback: u8,
        buffer: *mut Address,
        element: i32,
        size: i32,
        told: [i32; 4],
        flags: i32,
        ticket: u32,
    }

    impl From<Ipv4Addr> for Address {
        fn from(address: Ipv4Addr) -> Self {
            let mut ip = [0; 16];
            ip[..4].copy_from_slice(&address.octets());
            Self { ip, family: 2, prefix: 32, not: 0, feedback: 0 }
        }
    }

    pub(crate) struct Table {
        pf: File,
        lists: [Vec<Address>; 2],
        anchor: [u8; 1024],
        name: [u8; 32],
    }

    impl Table {
        pub(crate) fn new(anchor: &str, name: &str, lists: [Vec<Ipv4Addr>; 2]) -> Self {
            let lists = lists.map(|list| list.into_iter().map(Address::from).collect());
            let pf = OpenOptions::new().read(true).write(true).open("/dev/pf").unwrap();
            let mut table = Self { pf, lists, anchor: [0; 1024], name: [0; 32] };
            table.anchor[..anchor.len()].copy_from_slice(anchor.as_bytes());
            table.name[..name.len()].copy_from_slice(name.as_bytes());
            table
        }

        pub(crate) fn set(&mut self, list: usize) {
            const DIOCRSETADDRS: libc::c_ulong = 0xc450_4445;
            const _: () = assert!(size_of::<Request>() == 0x450);
            let list = &mut self.lists[list];
            let mut request = Request {
                anchor: self.anchor,
                name: self.name,
                kept: 0,
                feedback: 0,
                buffer: list.as_mut_ptr(),
                element: 20,
                size: 1000,
                told: [0; 4],
                flags: 0,
                ticket: 0,
            };
            // SAFETY: the request is of the length that its number says, and the list lives through the call.
            let done = unsafe { libc::ioctl(self.pf.as_raw_fd(), DIOCRSETADDRS, &raw mut request) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        }
    }
}

/// A deny list of 1,000 addresses is replaced: by us, and by a pfctl(8) that is run for it, in turns.
#[test]
#[ignore = "a benchmark"]
fn replacing_a_thousand_addresses() {
    const ROUNDS: usize = 40;
    const TABLE: &str = "out_deny_own_any_0_65535";
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    let kernel = Kernel::new().unwrap();
    let store = Store::new(host.data_dir());
    let mut live = plugin::LivePolicy::open(&kernel, &store, "pods", "vm", "eth0").unwrap();
    // The first makes the table.
    live.replace(denying(&thousand(1000, 0))).unwrap();
    let state = store.load().unwrap();
    let (network, mut attachment) = (&state.networks[0], state.attachments[0].clone());
    let anchor = anchor_of(&attachment.id);
    let anchor = anchor.trim();
    let mut update = |policy| {
        attachment.policy = policy;
        timed(|| kernel.update_policy(network, &attachment, &|| store.load(), &|_, _| false).unwrap())
    };
    for (differ, which) in [(1000, "an entirely other list"), (10, "a hundredth differs")] {
        let lists = [0, 1].map(|round| thousand(differ, round));
        let files = [0, 1].map(|round| {
            let file = host.dir.path().join(format!("list{round}"));
            let lines: Vec<String> = lists[round].iter().map(ToString::to_string).collect();
            std::fs::write(
                &file,
                lines.join(
                    "
",
                ),
            )
            .unwrap();
            file.display().to_string()
        });
        let mut raw = raw::Table::new(anchor, TABLE, lists.clone());
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..ROUNDS {
            // Each finds the other list than its own.
            let pfctl = ["-q", "-a", anchor, "-t", TABLE, "-T", "replace", "-f", &files[0]];
            times[0].push(timed(|| drop(run("/sbin/pfctl", &pfctl))));
            times[1].push(timed(|| raw.set(1)));
            times[2].push(update(denying(&lists[0])));
            let policy = denying(&lists[1]);
            times[3].push(timed(|| live.replace(policy).unwrap()));
        }
        let [pfctl, ioctl, update, whole] = times.map(median);
        println!("1,000 addresses, {which}: pfctl -T replace {pfctl:?}");
        for (what, time) in [
            ("the ioctl (DIOCRSETADDRS) alone, with the list made before", ioctl),
            ("the packet filter's part, live flows looked through", update),
            ("all, with the record on disk", whole),
        ] {
            println!("  {what}: {time:?}, {:.0} times as fast", ratio(pfctl, time));
        }
    }
    let start = Instant::now();
    for round in 0..ROUNDS * 10 {
        update(denying(&thousand(1000, round)[..1]));
    }
    let each = start.elapsed() / u32::try_from(ROUNDS * 10).unwrap();
    println!("one address: {each:?}, {:.0} updates/s", 1.0 / each.as_secs_f64());
    host.call("DEL", "vm", "0", &conf).unwrap();
}
