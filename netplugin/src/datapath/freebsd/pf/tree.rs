//! Where a sandbox's rules are: a tree of anchors that pf descends by the sandbox's name, so that what a new flow costs does
//! not depend on how many sandboxes there are. No input or output.
//!
//! pf asks the rules of a list one after the other, and knows no map from an interface or an address to a list. But an
//! interface may be in groups, and an address in tables. So each of the tree's nodes has a few references, one for each
//! branch: below `skep/port` by a group that the sandbox's port is in, below `skep/routed` by a table that its addresses are
//! in. Both lead to the same leaves, the sandboxes' own anchors. Nodes are made with the first sandbox that they lead to.

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

/// How many branches a node has, by its depth: 2,048 leaves in all. A packet is asked for half of the branches of each node on its
/// way, and for two rules of each other sandbox in its leaf.
const BRANCHES: [u32; 4] = [4, 8, 8, 8];

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

/// Which branch leads to a sandbox, by depth. Its name is twelve hexadecimal digits of a hash.
fn way(id: &str) -> [u32; BRANCHES.len()] {
    let mut rest = id.get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    BRANCHES.map(|branches| {
        let branch = rest % branches;
        rest /= branches;
        branch
    })
}

/// The interface group of ports that a branch leads to. Its name must not end in a digit.
fn group(depth: usize, branch: u32) -> String {
    format!("{GROUP}_{depth}_{branch}x")
}

/// The table of addresses that a branch leads to.
fn table(depth: usize, branch: u32) -> String {
    format!("skepr_{depth}_{branch}")
}

/// The anchor of a sandbox's filter.
pub(in super::super) fn port_anchor(id: &str) -> String {
    let leaf = way(id).into_iter().fold(Tree::Port.root(), below);
    format!("{leaf}/{id}")
}

/// The anchor of a sandbox's published ports.
pub(in super::super) fn map_anchor(id: &str) -> String {
    format!("{ROOT}/map/{id}")
}

/// The groups that a sandbox's port is in.
pub(in super::super) fn port_groups(id: &str) -> Vec<String> {
    let branches = (0..).zip(way(id)).map(|(depth, branch)| group(depth, branch));
    [GROUP, PORTS].map(ToOwned::to_owned).into_iter().chain(branches).collect()
}

/// The groups that a network's bridge is in.
pub(in super::super) const BRIDGE_GROUPS: [&str; 2] = [GROUP, BRIDGES];

/// The tables, of the main ruleset, that a sandbox's addresses are in.
pub(in super::super) fn routed_tables(id: &str) -> Vec<String> {
    (0..).zip(way(id)).map(|(depth, branch)| table(depth, branch)).collect()
}

/// All of [`routed_tables`], whatever the sandbox.
pub(in super::super) fn all_routed_tables() -> Vec<String> {
    let depths = BRANCHES.into_iter().enumerate();
    depths.flat_map(|(depth, branches)| (0..branches).map(move |branch| table(depth, branch))).collect()
}

/// The two ways down to the same leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Tree {
    /// By the port.
    Port,
    /// By the address, for what the host routes.
    Routed,
}

/// The anchor that a branch of an anchor leads to.
fn below(anchor: String, branch: u32) -> String {
    anchor + "/" + &branch.to_string()
}

impl Tree {
    /// Both.
    pub(in super::super) const ALL: [Self; 2] = [Self::Port, Self::Routed];

    /// The anchor of the first node.
    pub(in super::super) fn root(self) -> String {
        format!("{ROOT}/{}", if self == Self::Port { "port" } else { "routed" })
    }

    /// The nodes that a node's branches lead to; none where they lead to leaves.
    pub(in super::super) fn children(anchor: &str, depth: usize) -> impl Iterator<Item = String> {
        let branches = if depth + 1 < BRANCHES.len() { BRANCHES[depth] } else { 0 };
        (0..branches).map(move |branch| below(anchor.to_owned(), branch))
    }

    /// The rules of the node that these branches lead to.
    fn steps(self, to: &[u32]) -> Vec<Step> {
        let depth = to.len();
        let leaves = to.iter().copied().fold(Self::Port.root(), below);
        let last = depth + 1 == BRANCHES.len();
        let step = |branch: u32| {
            let into = match (self, last) {
                (_, false) => branch.to_string(),
                (Self::Port, true) => format!("{branch}/*"),
                (Self::Routed, true) => format!("/{leaves}/{branch}/*"),
            };
            match self {
                Self::Port => Step { on: Some(group(depth, branch)), ..Step::into(into) },
                Self::Routed => Step { to: Some(table(depth, branch)), ..Step::into(into) },
            }
        };
        let mut steps: Vec<Step> = (0..BRANCHES[depth]).map(step).collect();
        if self == Self::Port && depth == 0 {
            // A port whose rules are missing is nobody's.
            steps.push(Step { on: None, to: None, action: Action::Block });
        }
        steps
    }
}

/// An anchor of the tree, with its rules.
pub(in super::super) type Node = (String, Vec<Step>);

/// The nodes that are there without any sandbox.
pub(in super::super) fn first_nodes() -> Vec<Node> {
    Tree::ALL.into_iter().map(|tree| (tree.root(), tree.steps(&[]))).collect()
}

/// The nodes between those and a sandbox, those last that refer to others.
pub(in super::super) fn nodes_to(id: &str) -> Vec<Node> {
    let way = way(id);
    let node = |(tree, depth): (Tree, usize)| {
        let to = &way[..depth];
        (to.iter().copied().fold(tree.root(), below), tree.steps(to))
    };
    let depths = (1..BRANCHES.len()).rev();
    depths.flat_map(|depth| Tree::ALL.map(|tree| (tree, depth))).map(node).collect()
}

/// How many filter rules each anchor has of those that are there without any sandbox.
pub(in super::super) fn counts() -> &'static [(String, usize)] {
    // Each change of a policy asks.
    static COUNTS: LazyLock<Vec<(String, usize)>> = LazyLock::new(|| {
        let first = first_nodes().into_iter().map(|(anchor, steps)| (anchor, steps.len()));
        first.chain([(ROOT.to_owned(), ROOT_FILTERS)]).collect()
    });
    &COUNTS
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

    /// Walks a tree as pf does, of which there are the nodes that lead to some sandboxes: which anchors' children are asked for
    /// an interface in these groups or an address in these tables, and how many rules that takes.
    fn asked(tree: Tree, sandboxes: &[&str], matches: &dyn Fn(&Step) -> bool) -> (Vec<String>, usize) {
        let nodes: Vec<Node> =
            first_nodes().into_iter().chain(sandboxes.iter().flat_map(|id| nodes_to(id))).collect();
        let (mut found, mut rules, mut todo) = (Vec::new(), 0, vec![tree.root()]);
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
        fn both_ways_lead_to_the_sandbox_and_to_few_others(id in "[0-9a-f]{12}", other in "[0-9a-f]{12}") {
            let (groups, tables) = (port_groups(&id), routed_tables(&id));
            let anchor = port_anchor(&id);
            let parent = |anchor: &str| anchor.rsplit_once('/').unwrap().0.to_owned();
            // A step of the one tree has no table, one of the other no group.
            let matches = |step: &Step| {
                step.on.as_ref().is_some_and(|group| groups.contains(group))
                    || step.to.as_ref().is_some_and(|table| tables.contains(table))
            };
            for tree in Tree::ALL {
                let (found, rules) = asked(tree, &[&other, &id], &matches);
                prop_assert_eq!(found, vec![parent(&anchor)]);
                prop_assert!(rules <= 29, "{}", rules);
                // Where only another's nodes are, nobody else is found.
                let (found, _) = asked(tree, &[&other], &matches);
                prop_assert!(found.is_empty() || found == vec![parent(&anchor)]);
            }
            prop_assert_eq!(sandbox_of(&anchor), Some(id.as_str()));
            let map = map_anchor(&id);
            prop_assert_eq!(sandbox_of(&map), Some(id.as_str()));
            prop_assert!(tables.iter().all(|table| all_routed_tables().contains(table)));
        }

        #[test]
        fn every_node_to_a_sandbox_is_found_from_the_top(id in "[0-9a-f]{12}") {
            let mut all: Vec<String> = Vec::new();
            let mut todo: Vec<(String, usize)> = Tree::ALL.map(|tree| (tree.root(), 0)).into();
            while let Some((anchor, depth)) = todo.pop() {
                todo.extend(Tree::children(&anchor, depth).map(|child| (child, depth + 1)));
                all.push(anchor);
            }
            prop_assert_eq!(all.len(), 2 * (1 + 4 + 32 + 256));
            prop_assert!(nodes_to(&id).iter().all(|(anchor, _)| all.contains(anchor)));
        }
    }

    #[test]
    fn who_is_in_no_group_is_asked_for_nothing_and_stopped() {
        assert_eq!(asked(Tree::Port, &["0123456789ab"], &|_| false).0, Vec::<String>::new());
        let first = first_nodes();
        let (_, ports) = first.iter().find(|(name, _)| name == "skep/port").unwrap();
        assert_eq!(ports.last().unwrap().action, Action::Block);
        for anchor in ["skep/net/0123456789ab", "skep/port/0", "skep/port/0/1", "other/port/0/1/0123456789ab"]
        {
            assert_eq!(sandbox_of(anchor), None, "{anchor}");
        }
    }

    #[test]
    fn a_thousand_sandboxes_share_few_leaves() {
        let mut leaves = std::collections::HashMap::<String, usize>::new();
        for n in 0..1000 {
            let id = crate::mac::digest_hex(&["sandbox", &n.to_string()], 6);
            *leaves.entry(port_anchor(&id).rsplit_once('/').unwrap().0.to_owned()).or_default() += 1;
        }
        let others: usize = leaves.values().map(|n| n * (n - 1)).sum();
        assert!(others < 700, "{others} others in the leaves of a thousand, together");
    }
}
