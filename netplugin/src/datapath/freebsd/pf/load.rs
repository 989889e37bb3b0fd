//! Loading rules by pfctl(8), the field's tool for their language; a file is loaded whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::device::{List, Pf};
use super::ruleset::{self, PEERS, ROOT, ROOT_RULES, Ruleset};
use super::states::{self, State};
use crate::datapath::DatapathError;
use crate::datapath::freebsd::kernel;
use crate::network::{HostState, Network};

/// How long pfctl may take; listing hundreds of thousands of states takes it seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs pfctl; what it printed.
pub(in super::super) fn pfctl(args: &[&str], input: &str) -> Result<String, DatapathError> {
    let what = || format!("pfctl {}", args.join(" "));
    let failed = |error| kernel(format!("run {}", what()), error);
    let mut child = Command::new("/sbin/pfctl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let pid = child.id();
    let stdin = child.stdin.take();
    let input = input.to_owned();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let written = stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let _ = sender.send(child.wait_with_output().and_then(|output| written.map(|()| output)));
    });
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        // SAFETY: no pointers; the child is waited for by the thread, so the number is still its own.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        return Err(failed(std::io::ErrorKind::TimedOut.into()));
    };
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(DatapathError::Answer { what: what(), why: told.trim().to_owned() })
}

/// Where calls wait for each other: pf collects the addresses of rules that are being loaded in one place for all, so
/// two loads at a time spoil each other.
const LOCK: &str = "/var/run/skep-cni.pf.lock";
/// An administrator's own pfctl knows nothing of our lock.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

fn lock() -> Result<File, DatapathError> {
    let failed = |error| kernel(format!("lock {LOCK}"), error);
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(LOCK);
    let file = open.map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Loads the rules of an anchor by pfctl.
fn load_text(anchor: &str, text: &str) -> Result<(), DatapathError> {
    let _lock = lock()?;
    let mut tries = 1;
    loop {
        match pfctl(&["-q", "-a", anchor, "-o", "none", "-f", "-"], text) {
            Err(DatapathError::Answer { why, .. }) if why.contains("busy") && tries < TRIES => tries += 1,
            result => return result.map(|_| ()),
        }
        thread::sleep(PAUSE);
    }
}

/// Puts the rules of an anchor in place of those it has. Its tables are filled first: a table that rules do not use yet
/// waits for them, and one they use already is replaced at once, so no rule ever looks into an empty one.
pub(in super::super) fn load(pf: &Pf, set: &Ruleset) -> Result<(), DatapathError> {
    let mut text = String::new();
    for line in set.text.lines().filter(|line| !line.starts_with("table ")) {
        text.push_str(line);
        text.push('\n');
    }
    for (name, nets) in &set.tables {
        pf.make_table(&set.anchor, name)?;
        pf.set(&set.anchor, name, nets)?;
    }
    load_text(&set.anchor, &text)?;
    pf.make_table(&set.anchor, DIGEST)?;
    pf.set(&set.anchor, DIGEST, &[set.digest().into()])
}

/// The table that holds a mark of the rules which were loaded.
const DIGEST: &str = "digest";

/// Like [`load`], but where only what is in tables differs, replaces just that: no other program is needed.
pub(in super::super) fn update(pf: &Pf, set: &Ruleset) -> Result<(), DatapathError> {
    if pf.first(&set.anchor, DIGEST)? == Some(set.digest()) { fill(pf, set) } else { load(pf, set) }
}

/// Replaces what is in the tables of an anchor.
pub(in super::super) fn fill(pf: &Pf, set: &Ruleset) -> Result<(), DatapathError> {
    set.tables.iter().try_for_each(|(name, nets)| pf.set(&set.anchor, name, nets))
}

/// What keeps our rules from being asked.
pub(in super::super) fn missing(pf: &Pf) -> Result<Vec<List>, DatapathError> {
    let nat = pfctl(&["-q", "-s", "nat"], "")?;
    let rules = pfctl(&["-q", "-s", "rules"], "")?;
    let mut missing: Vec<List> = List::ALL
        .into_iter()
        .zip(ruleset::referenced(&nat, &rules))
        .filter(|(_, there)| !there)
        .map(|(list, _)| list)
        .collect();
    let root = ROOT_RULES.lines().filter(|line| line.starts_with("anchor")).count();
    if missing.is_empty()
        && pf.count(ROOT, List::Filter)?.is_none_or(|(count, _)| usize::try_from(count) != Ok(root))
    {
        missing.push(List::Filter);
    }
    Ok(missing)
}

/// Whether the packet filter is on.
pub(in super::super) fn enabled() -> Result<bool, DatapathError> {
    Ok(pfctl(&["-q", "-s", "info"], "")?.lines().any(|line| line.starts_with("Status: Enabled")))
}

/// Makes sure that our rules are asked: the packet filter is on, and its main ruleset refers to our anchor. Rules of the
/// administrator's stay as they are. True if something was missing.
pub(in super::super) fn ensure_root(pf: &Pf) -> Result<bool, DatapathError> {
    let mut missing = missing(pf)?;
    let on = enabled()?;
    if missing.is_empty() && on {
        return Ok(false);
    }
    if !on {
        let foreign = pfctl(&["-q", "-s", "rules"], "")? + &pfctl(&["-q", "-s", "nat"], "")?;
        let ours = |line: &str| line.contains(&format!("anchor \"{ROOT}\" "));
        if foreign.lines().any(|line| !line.trim().is_empty() && !ours(line)) {
            return Err(DatapathError::Conflict(
                "the packet filter has the administrator's rules but is off: turn it on (pfctl -e) or empty it \
                 (pfctl -F rules -F nat)"
                    .to_owned(),
            ));
        }
    }
    if !on {
        // Nobody's rules are there. Until some ruleset was loaded once, though it be empty, a filter that was turned on
        // does not translate addresses by anchors that are put into the main ruleset one by one.
        let _lock = lock()?;
        pfctl(&["-q", "-f", "-"], "")?;
        // References of ours that were left are gone with it.
        missing = List::ALL.to_vec();
    }
    if !missing.is_empty() {
        load_text(ROOT, ROOT_RULES)?;
        let _lock = lock()?;
        let nat = pfctl(&["-q", "-s", "nat"], "")?;
        let rules = pfctl(&["-q", "-s", "rules"], "")?;
        for (list, there) in List::ALL.into_iter().zip(ruleset::referenced(&nat, &rules)) {
            if !there {
                pf.refer(list, ROOT)?;
            }
        }
    }
    if !on {
        pf.start()?;
    }
    Ok(true)
}

/// Empties our anchor, and takes those references out of the main ruleset that we put there.
pub(in super::super) fn remove_root(pf: &Pf) -> Result<(), DatapathError> {
    for (show, list) in [("nat", List::Nat), ("nat", List::Rdr), ("rules", List::Filter)] {
        let listing = pfctl(&["-q", "-vv", "-s", show], "")?;
        let of_list = |line: &&str| (list == List::Rdr) == line.contains("rdr-anchor");
        let listing: Vec<&str> = listing.lines().filter(of_list).collect();
        // From the end: numbers of the others stay what they are.
        for number in ruleset::own_references(&listing.join("\n")).into_iter().rev() {
            pf.remove_rule(list, number)?;
        }
    }
    pf.clear(ROOT)
}

/// Tables that networks and sandboxes share: in the main ruleset, where every anchor finds them.
pub(in super::super) fn shared_tables(pf: &Pf, state: &HostState) -> Result<(), DatapathError> {
    let set = |name: &str, nets: Vec<ipnet::IpNet>| {
        pf.make_table("", name)?;
        pf.set("", name, &nets)
    };
    set(PEERS, ruleset::peers(state))?;
    for network in &state.networks {
        set(&ruleset::apart_table(network), ruleset::apart(network, state))?;
        for group in &network.groups {
            set(&ruleset::group_table(network, group), ruleset::members(network, group, state))?;
        }
    }
    Ok(())
}

/// Removes the shared tables of a network.
pub(in super::super) fn remove_shared(pf: &Pf, network: &Network, last: bool) -> Vec<DatapathError> {
    let mut names = vec![ruleset::apart_table(network)];
    names.extend(network.groups.iter().map(|group| ruleset::group_table(network, group)));
    if last {
        names.push(PEERS.to_owned());
    }
    names.iter().filter_map(|name| pf.remove_table(name).err()).collect()
}

/// Every flow that pf keeps state of.
pub(in super::super) fn flows() -> Result<Vec<State>, DatapathError> {
    pfctl(&["-q", "-vv", "-s", "states"], "").map(|listing| states::parse(&listing))
}

/// Ends flows.
pub(in super::super) fn end<'a>(flows: impl Iterator<Item = &'a State>) -> Result<(), DatapathError> {
    for flow in flows {
        pfctl(&["-q", "-k", "id", "-k", &flow.id], "")?;
    }
    Ok(())
}

/// Ends every flow from or to an address.
pub(in super::super) fn end_all(ip: IpAddr) -> Result<(), DatapathError> {
    let ip = ip.to_string();
    let anybody = if ip.contains(':') { "::/0" } else { "0.0.0.0/0" };
    pfctl(&["-q", "-k", &ip], "")?;
    pfctl(&["-q", "-k", anybody, "-k", &ip], "").map(|_| ())
}
