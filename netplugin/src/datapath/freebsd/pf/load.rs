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

use super::device::Pf;
use super::rules::List;
use super::ruleset::Ruleset;
use super::shared::{self, PEERS};
use super::states::State;
use super::tree::{self, Node, PUBLISHED_ON, ROOT, Tree};
use super::{listing, network, published, sandbox};
use crate::datapath::DatapathError;
use crate::datapath::freebsd::kernel;
use crate::mac::is_link_local;
use crate::network::{Attachment, HostState, Network};

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

/// Whether what pfctl complains of is gone a moment later: another's load, or an interface that went while pfctl listed
/// those there are (ENXIO; it asks for each one's groups).
fn passes(why: &str) -> bool {
    why.contains("busy") || why.contains("Device not configured")
}

/// Loads the rules of an anchor by pfctl.
fn load_text(anchor: &str, text: &str) -> Result<(), DatapathError> {
    let _lock = lock()?;
    let mut tries = 1;
    loop {
        match pfctl(&["-q", "-a", anchor, "-o", "none", "-f", "-"], text) {
            Err(DatapathError::Answer { why, .. }) if passes(&why) && tries < TRIES => tries += 1,
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
    pf.allow_anchors()?;
    let names: Vec<&str> = set.tables.iter().map(|(name, _)| name.as_str()).chain([DIGEST]).collect();
    pf.make_tables(&set.anchor, &names)?;
    fill(pf, set)?;
    load_text(&set.anchor, &text)?;
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

/// Makes the rules of a network. By `outside` packets leave for the world.
pub(in super::super) fn network(
    pf: &Pf,
    network: &Network,
    outside: &[network::Outside],
) -> Result<(), DatapathError> {
    let guard = network::guard(network);
    if guard.text.is_empty() {
        pf.clear(&guard.anchor)?;
    } else {
        load(pf, &guard)?;
    }
    load(pf, &network::rules(network, outside))
}

/// Makes the rules of a sandbox, and writes its addresses down where packets that the host routes are told apart.
pub(in super::super) fn sandbox(
    pf: &Pf,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), DatapathError> {
    lead_to(pf, &attachment.id)?;
    load(pf, &sandbox::rules(network, attachment))?;
    let ips: Vec<ipnet::IpNet> = attachment.senders().into_iter().map(Into::into).collect();
    for table in tree::routed_tables(&attachment.id) {
        pf.change(&table, true, &ips)?;
    }
    match published::map(attachment) {
        Some(map) => load(pf, &map),
        None => Ok(()),
    }
}

/// Makes the rules of a sandbox, and writes its addresses down in the tables that are shared.
pub(in super::super) fn admit(
    pf: &Pf,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), DatapathError> {
    sandbox(pf, network, attachment)?;
    let hosts = published::hosts(std::iter::once(attachment));
    if !hosts.is_empty() {
        pf.change(tree::PUBLISHED_ON, true, &hosts)?;
    }
    group(pf, network, attachment, true)
}

/// Puts the addresses that a sandbox may use into the table of its group, or takes them out. A declared group has none.
pub(in super::super) fn group(
    pf: &Pf,
    network: &Network,
    attachment: &Attachment,
    add: bool,
) -> Result<(), DatapathError> {
    let ips: Vec<ipnet::IpNet> = attachment.senders().into_iter().map(Into::into).collect();
    let mut groups = network.policy.undeclared(attachment.group.iter());
    groups.try_for_each(|group| pf.change(&shared::group_table(network, group), add, &ips))
}

/// Removes the rules of a sandbox. Goes on after an error.
pub(in super::super) fn remove_sandbox(pf: &Pf, attachment: &Attachment) -> Vec<DatapathError> {
    let mut errors = Vec::new();
    if !attachment.ports.is_empty() {
        errors.extend(pf.clear(&tree::map_anchor(&attachment.id)).err());
    }
    errors.extend(pf.clear(&tree::port_anchor(&attachment.id)).err());
    let ips: Vec<ipnet::IpNet> = attachment.senders().into_iter().map(Into::into).collect();
    for table in tree::routed_tables(&attachment.id) {
        errors.extend(pf.change(&table, false, &ips).err());
    }
    errors
}

/// The table of the root anchor that holds the version which the main ruleset had when our references were in it.
const SEEN: &str = "seen";

/// The present version of the main ruleset: of each list that should refer to us, the number that grows with each change.
fn version(pf: &Pf) -> Result<IpAddr, DatapathError> {
    let mut segments = [0; 8];
    for (two, list) in segments.chunks_exact_mut(2).zip(List::ALL) {
        let (_, number) = pf.count("", list)?.unwrap_or_default();
        two[0] = (number >> 16) as u16;
        two[1] = number as u16;
    }
    // All of it is never zero, which is no address to keep in a table.
    segments[7] = 1;
    Ok(IpAddr::from(segments))
}

/// What keeps our rules from being asked. No other program is needed where the main ruleset is what it was.
pub(in super::super) fn missing(pf: &Pf) -> Result<Vec<List>, DatapathError> {
    let version = version(pf)?;
    let whole = are_whole(pf)?;
    if whole && pf.first(ROOT, SEEN)? == Some(version) {
        return Ok(Vec::new());
    }
    let missing = look(whole)?;
    if missing.is_empty() {
        pf.make_tables(ROOT, &[SEEN])?;
        pf.set(ROOT, SEEN, &[version.into()])?;
    }
    Ok(missing)
}

/// Whether a sandbox's rules are asked: the packet filter is on, its main ruleset is what it was when it referred to us, and
/// the anchors between lead there.
pub(in super::super) fn leads_to(pf: &Pf, id: &str) -> Result<bool, DatapathError> {
    Ok(pf.is_on()?
        && are_whole(pf)?
        && missing_nodes(pf, id)?.is_empty()
        && pf.first(ROOT, SEEN)? == Some(version(pf)?))
}

fn look(whole: bool) -> Result<Vec<List>, DatapathError> {
    let nat = pfctl(&["-q", "-s", "nat"], "")?;
    let rules = pfctl(&["-q", "-s", "rules"], "")?;
    let mut missing: Vec<List> = List::ALL
        .into_iter()
        .zip(listing::referenced(&nat, &rules))
        .filter(|(_, there)| !there)
        .map(|(list, _)| list)
        .collect();
    if missing.is_empty() && !whole {
        missing.push(List::Filter);
    }
    Ok(missing)
}

/// Whether an anchor has so many filter rules.
fn has(pf: &Pf, anchor: &str, wanted: usize) -> Result<bool, DatapathError> {
    let found = pf.count(anchor, List::Filter)?;
    Ok(found.is_some_and(|(count, _)| usize::try_from(count) == Ok(wanted)))
}

/// Whether anchors that are the same on every host have as many rules as they should.
fn are_whole(pf: &Pf) -> Result<bool, DatapathError> {
    for (anchor, wanted) in tree::counts() {
        if !has(pf, anchor, *wanted)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Those nodes of the tree between the first ones and a sandbox that are not what they should be.
pub(in super::super) fn missing_nodes(pf: &Pf, id: &str) -> Result<Vec<Node>, DatapathError> {
    let mut missing = Vec::new();
    for (anchor, steps) in tree::nodes_to(id) {
        if !has(pf, &anchor, steps.len())? {
            missing.push((anchor, steps));
        }
    }
    Ok(missing)
}

/// Makes the nodes of the tree that lead to a sandbox, where they are missing. They stay until there is no network.
pub(in super::super) fn lead_to(pf: &Pf, id: &str) -> Result<(), DatapathError> {
    let missing = missing_nodes(pf, id)?;
    if missing.is_empty() {
        return Ok(());
    }
    pf.allow_anchors()?;
    let _lock = lock()?;
    pf.replace(&missing)
}

/// Makes the anchors that are the same on every host, and the tables that they look into.
fn make_tree(pf: &Pf) -> Result<(), DatapathError> {
    pf.allow_anchors()?;
    let mut tables = tree::all_routed_tables();
    tables.extend([PUBLISHED_ON, tree::INSIDE].map(ToOwned::to_owned));
    pf.make_tables("", &tables)?;
    {
        let _lock = lock()?;
        pf.replace(&tree::first_nodes())?;
    }
    load_text(ROOT, &tree::root())
}

/// Makes sure that our rules are asked: the packet filter is on, and its main ruleset refers to our anchor. Rules of the
/// administrator's stay as they are. True if something was missing.
pub(in super::super) fn ensure_root(pf: &Pf) -> Result<bool, DatapathError> {
    let mut missing = missing(pf)?;
    let on = pf.is_on()?;
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
        make_tree(pf)?;
        let _lock = lock()?;
        let nat = pfctl(&["-q", "-s", "nat"], "")?;
        let rules = pfctl(&["-q", "-s", "rules"], "")?;
        for (list, there) in List::ALL.into_iter().zip(listing::referenced(&nat, &rules)) {
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
        for number in listing::own_references(&listing.join("\n")).into_iter().rev() {
            pf.remove_rule(list, number)?;
        }
    }
    pf.clear(ROOT)?;
    let mut nodes = Vec::new();
    let mut todo: Vec<(String, usize)> = Tree::ALL.map(|tree| (tree.root(), 0)).into();
    while let Some((anchor, depth)) = todo.pop() {
        if pf.count(&anchor, List::Filter)?.is_some() {
            todo.extend(Tree::children(&anchor, depth).map(|child| (child, depth + 1)));
            nodes.push((anchor, Vec::new()));
        }
    }
    // Those that refer to others come first: what nobody refers to and has no rules is gone.
    let _lock = lock()?;
    pf.replace(&nodes)
}

/// Tables that networks and sandboxes share: in the main ruleset, where every anchor finds them.
pub(in super::super) fn shared_tables(pf: &Pf, state: &HostState) -> Result<(), DatapathError> {
    let set = |name: &str, nets: Vec<ipnet::IpNet>| {
        pf.make_tables("", &[name])?;
        pf.set("", name, &nets)
    };
    set(PEERS, shared::peers(state))?;
    set(PUBLISHED_ON, published::hosts(state.attachments.iter()))?;
    set(tree::INSIDE, shared::inside(state))?;
    for network in &state.networks {
        set(&shared::apart_table(network), shared::apart(network, state))?;
        for group in &network.groups {
            set(&shared::group_table(network, group), shared::members(network, group, state))?;
        }
    }
    Ok(())
}

/// Removes the shared tables of a network.
pub(in super::super) fn remove_shared(pf: &Pf, network: &Network, last: bool) -> Vec<DatapathError> {
    let mut errors: Vec<DatapathError> =
        pf.change(tree::INSIDE, false, &network.subnets_inside()).err().into_iter().collect();
    let mut names = vec![shared::apart_table(network)];
    names.extend(network.groups.iter().map(|group| shared::group_table(network, group)));
    if last {
        names.extend([PEERS, PUBLISHED_ON, tree::INSIDE].map(ToOwned::to_owned));
        names.extend(tree::all_routed_tables());
    }
    errors.extend(pf.remove_tables(&names).err());
    errors
}

/// Ends flows.
pub(in super::super) fn end<'a>(flows: impl Iterator<Item = &'a State>) -> Result<(), DatapathError> {
    for flow in flows {
        pfctl(&["-q", "-k", "id", "-k", &flow.id], "")?;
    }
    Ok(())
}

/// Ends every flow from or to these addresses.
pub(in super::super) fn end_all(pf: &Pf, ips: &[IpAddr]) -> Vec<DatapathError> {
    let flows = match pf.flows() {
        Ok(flows) => flows,
        Err(error) => return vec![error],
    };
    let mut errors = Vec::new();
    // Most have none by then, and no other program is needed.
    for ip in ips.iter().filter(|ip| flows.iter().any(|flow| flow.involves(**ip))) {
        if is_link_local(*ip) {
            // pf may keep its scope in it, which pfctl(8) is not told.
            errors.extend(end(flows.iter().filter(|flow| flow.involves(*ip))).err());
            continue;
        }
        let (one, anybody) = (ip.to_string(), if ip.is_ipv6() { "::/0" } else { "0.0.0.0/0" });
        for whose in [&["-k", &one][..], &["-k", anybody, "-k", &one], &["-k", "nat", "-k", &one]] {
            errors.extend(pfctl(&[&["-q"], whose].concat(), "").err());
        }
    }
    errors
}
