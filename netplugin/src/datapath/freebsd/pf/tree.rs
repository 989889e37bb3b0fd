//! Where a sandbox's rules are: a tree of anchors that pf descends by the first two digits of the sandbox's name, so that
//! what a new flow costs hardly depends on how many sandboxes there are. No input or output.
//!
//! pf asks the rules of a list one after the other, and knows no map from an interface or an address to a list. But an
//! interface may be in groups, and an address in tables. So each of the tree's nodes has sixteen references, one for each
//! digit: below `skep/port` by a group that the sandbox's port is in, below `skep/routed` by a table that its addresses are
//! in. Both lead to the same leaves, the sandboxes' own anchors.

use std::sync::LazyLock;

/// A rule of the tree's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Step {
    /// The interface or group of interfaces; none means every one.
    pub(in super::super) on: Option<String>,
    /// The table that the destination is in; none means every destination.
    pub(in super::super) to: Option<String>,
    /// What follows.
    pub(in super::super) action: Action,
}

/// What a [`Step`] does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Action {
    /// Asks an anchor, by its path from the step's own, or with `/` before it from the main ruleset.
    Into(String),
    /// Drops it.
    Block,
}

impl Step {
    fn into(anchor: String) -> Self {
        Self { on: None, to: None, action: Action::Into(anchor) }
    }
}

/// The anchor that the main ruleset refers to.
pub(in super::super) const ROOT: &str = "skep";
/// The interface group of everything that is ours: bridges, ports, links.
pub(in super::super) const GROUP: &str = "skep";
/// The interface group of sandboxes' ports.
const PORTS: &str = "skepport";
/// The interface group of bridges, where packets for sandboxes pass that the host routes.
const BRIDGES: &str = "skepbridge";
/// Table, of the main ruleset, of addresses that ports are published on and that the host need not have.
pub(in super::super) const PUBLISHED_ON: &str = "skep_hosts";
/// Table, of the main ruleset, of the subnets that are behind networks' bridges and nowhere else.
pub(in super::super) const INSIDE: &str = "skep_inside";
/// The root anchor's references for translation: networks, what the host itself asks of published ports, and what
/// others ask.
const ROOT_TRANSLATIONS: usize = 4;
/// The filter's references in the root anchor.
const ROOT_FILTERS: usize = 4;

/// What pfctl(8) reads for the root anchor.
pub(in super::super) fn root() -> String {
    let lines: [String; ROOT_TRANSLATIONS + ROOT_FILTERS] = [
        "nat-anchor \"net/*\"".to_owned(),
        "nat-anchor \"map/*\" on lo0 from any to (self)".to_owned(),
        "rdr-anchor \"map/*\" from any to (self)".to_owned(),
        format!("rdr-anchor \"map/*\" from any to <{PUBLISHED_ON}>"),
        format!("anchor \"port\" on {PORTS}"),
        // By any interface but the loopback, and not of the host's own making.
        format!("anchor \"guard/*\" out on {BRIDGES} from <{INSIDE}> received-on any"),
        format!("anchor \"routed\" out on {BRIDGES}"),
        "anchor \"net/*\"".to_owned(),
    ];
    lines.map(|line| line + "\n").concat()
}

/// The hexadecimal digits, by which the tree branches.
fn digits() -> impl Iterator<Item = char> + Clone {
    "0123456789abcdef".chars()
}

/// The two digits that say where a sandbox is. Its name has twelve.
fn branch(id: &str) -> (char, char) {
    let mut digits = id.chars();
    (digits.next().unwrap_or('0'), digits.next().unwrap_or('0'))
}

// The name of a group must not end in a digit.
fn group1(a: char) -> String {
    format!("{GROUP}{a}x")
}

fn group2(a: char, b: char) -> String {
    format!("{GROUP}{a}{b}x")
}

fn table1(a: char) -> String {
    format!("skepr_{a}")
}

fn table2(a: char, b: char) -> String {
    format!("skepr_{a}{b}")
}

/// The anchor of a sandbox's filter.
pub(in super::super) fn port_anchor(id: &str) -> String {
    let (a, b) = branch(id);
    format!("{ROOT}/port/{a}/{b}/{id}")
}

/// The anchor of a sandbox's published ports.
pub(in super::super) fn map_anchor(id: &str) -> String {
    format!("{ROOT}/map/{id}")
}

/// The groups that a sandbox's port is in.
pub(in super::super) fn port_groups(id: &str) -> [String; 4] {
    let (a, b) = branch(id);
    [GROUP.to_owned(), PORTS.to_owned(), group1(a), group2(a, b)]
}

/// The groups that a network's bridge is in.
pub(in super::super) const BRIDGE_GROUPS: [&str; 2] = [GROUP, BRIDGES];

/// The tables, of the main ruleset, that a sandbox's addresses are in.
pub(in super::super) fn routed_tables(id: &str) -> [String; 2] {
    let (a, b) = branch(id);
    [table1(a), table2(a, b)]
}

/// All of [`routed_tables`], whatever the sandbox.
pub(in super::super) fn all_routed_tables() -> Vec<String> {
    digits().map(table1).chain(digits().flat_map(|a| digits().map(move |b| table2(a, b)))).collect()
}

/// The tree: anchors with their rules, those last that refer to others.
pub(in super::super) fn nodes() -> Vec<(String, Vec<Step>)> {
    let mut nodes = Vec::new();
    for a in digits() {
        let on = |b| Step { on: Some(group2(a, b)), ..Step::into(format!("{b}/*")) };
        nodes.push((format!("{ROOT}/port/{a}"), digits().map(on).collect()));
        let to = |b| Step { to: Some(table2(a, b)), ..Step::into(format!("/{ROOT}/port/{a}/{b}/*")) };
        nodes.push((format!("{ROOT}/routed/{a}"), digits().map(to).collect()));
    }
    let mut ports: Vec<Step> =
        digits().map(|a| Step { on: Some(group1(a)), ..Step::into(a.to_string()) }).collect();
    // A port whose rules are missing is nobody's.
    ports.push(Step { on: None, to: None, action: Action::Block });
    nodes.push((format!("{ROOT}/port"), ports));
    let routed = digits().map(|a| Step { to: Some(table1(a)), ..Step::into(a.to_string()) }).collect();
    nodes.push((format!("{ROOT}/routed"), routed));
    nodes
}

/// How many filter rules each anchor has of those that are the same on every host.
pub(in super::super) fn counts() -> &'static [(String, usize)] {
    // Each change of a policy asks.
    static COUNTS: LazyLock<Vec<(String, usize)>> = LazyLock::new(|| {
        let mut counts: Vec<_> = nodes().into_iter().map(|(anchor, steps)| (anchor, steps.len())).collect();
        counts.push((ROOT.to_owned(), ROOT_FILTERS));
        counts
    });
    &COUNTS
}

/// As [`counts`], of those anchors alone that lead to a sandbox.
pub(in super::super) fn counts_to(id: &str) -> impl Iterator<Item = &'static (String, usize)> {
    let (a, _) = branch(id);
    let on_path = move |anchor: &str| match anchor.strip_prefix(ROOT).map(|rest| rest.trim_start_matches('/'))
    {
        Some("" | "port" | "routed") => true,
        Some(rest) => rest.rsplit_once('/').is_some_and(|(_, digit)| digit.chars().eq([a])),
        None => false,
    };
    counts().iter().filter(move |(anchor, _)| on_path(anchor))
}

/// The sandbox that an anchor below the root belongs to; none if it is no sandbox's.
pub(in super::super) fn sandbox_of(anchor: &str) -> Option<&str> {
    let rest = anchor.strip_prefix(ROOT)?.strip_prefix('/')?;
    let (kind, rest) = rest.split_once('/')?;
    let id = rest.rsplit('/').next()?;
    let is_id = id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && matches!(kind, "port" | "map")).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_fit_into_what_the_kernel_allows() {
        for group in port_groups("ffffffffffff").iter().map(String::as_str).chain(BRIDGE_GROUPS) {
            // SIOCAIFGROUP: at most 15 bytes, and no digit at the end.
            assert!(group.len() < 16 && !group.ends_with(|c: char| c.is_ascii_digit()), "{group}");
        }
        assert!(all_routed_tables().iter().all(|name| name.len() < 32));
    }

    /// Walks the tree as pf does: which anchors' children are asked for an interface in these groups or an address in
    /// these tables, and how many rules that takes.
    fn asked(root: &str, matches: &dyn Fn(&Step) -> bool) -> (Vec<String>, usize) {
        let nodes = nodes();
        let (mut found, mut rules, mut todo) = (Vec::new(), 0, vec![format!("{ROOT}/{root}")]);
        while let Some(anchor) = todo.pop() {
            let Some((_, steps)) = nodes.iter().find(|(name, _)| *name == anchor) else { continue };
            for step in steps {
                rules += 1;
                let Action::Into(call) = &step.action else { continue };
                if matches(step) {
                    let path =
                        call.strip_prefix('/').map_or_else(|| format!("{anchor}/{call}"), str::to_owned);
                    match path.strip_suffix("/*") {
                        Some(parent) => found.push(parent.to_owned()),
                        None => todo.push(path),
                    }
                }
            }
        }
        (found, rules)
    }

    proptest! {
        #[test]
        fn both_ways_lead_to_the_sandbox_and_to_few_others(id in "[0-9a-f]{12}") {
            let (groups, tables) = (port_groups(&id), routed_tables(&id));
            let on = |step: &Step| step.on.as_ref().is_some_and(|group| groups.contains(group));
            let to = |step: &Step| step.to.as_ref().is_some_and(|table| tables.contains(table));
            let anchor = port_anchor(&id);
            let parent = anchor.rsplit_once('/').unwrap().0.to_owned();
            for (found, rules) in [asked("port", &on), asked("routed", &to)] {
                prop_assert_eq!(found, vec![parent.clone()]);
                prop_assert!(rules <= 33, "{}", rules);
            }
            prop_assert_eq!(sandbox_of(&anchor), Some(id.as_str()));
            let on_path: Vec<&str> = counts_to(&id).map(|(anchor, _)| anchor.as_str()).collect();
            let parents = |anchor: &str| anchor.match_indices('/').map(|(at, _)| anchor[..at].to_owned()).collect::<Vec<_>>();
            prop_assert_eq!(on_path.len(), 5);
            // All but the last one, which has no rules of its own, above the sandbox's.
            prop_assert!(parents(&anchor).iter().take(3).all(|one| on_path.contains(&one.as_str())));
            let map = map_anchor(&id);
            prop_assert_eq!(sandbox_of(&map), Some(id.as_str()));
            prop_assert!(tables.iter().all(|table| all_routed_tables().contains(table)));
        }
    }

    #[test]
    fn who_is_in_no_group_is_asked_for_nothing_and_stopped() {
        assert_eq!(asked("port", &|_| false).0, Vec::<String>::new());
        let all = nodes();
        let (_, ports) = all.iter().find(|(name, _)| name == "skep/port").unwrap();
        assert_eq!(ports.last().unwrap().action, Action::Block);
        for anchor in ["skep/net/0123456789ab", "skep/port/0", "skep/port/0/1", "other/port/0/1/0123456789ab"]
        {
            assert_eq!(sandbox_of(anchor), None, "{anchor}");
        }
    }
}
