//! What there is on a host: to compare before and after, and to count.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::{Container, Host, sh};

/// Lists pf's anchors. pfctl gives up when one goes while it lists them: pf frees those that flows knew late.
pub const ANCHORS: &str = "n=0; until list=$(pfctl -qs Anchors -v); do n=$((n + 1)); [ $n -lt 10 ]; sleep 1; done; \
                           echo \"$list\"";

/// How many branches each node of the tree of anchors has, by its depth.
const BRANCHES: [u32; 4] = [4, 8, 8, 8];

/// How many rules pf has looked at, since they were loaded, on its ways to these sandboxes: all lists that it can come by,
/// those of sandboxes that share a leaf with one of them included. (To list everything takes an emulated machine minutes.)
pub fn evaluations(to: &[&Container]) -> u64 {
    let mut script = "list() { pfctl -q -a \"$1\" -vsr; pfctl -q -a \"$1\" -vsn; }\n\
                      below() { pfctl -q -a \"$1\" -s Anchors; }\n\
                      pfctl -q -vsr; pfctl -q -vsn; list skep\n\
                      for one in $(below skep/net) $(below skep/guard); do list $one; done\n"
        .to_owned();
    let (mut nodes, mut leaves) = (BTreeSet::new(), BTreeSet::new());
    for one in to {
        let mut rest = u32::from_str_radix(&one.host_ifname()[3..7], 16).unwrap();
        let mut way = String::new();
        for branches in BRANCHES {
            nodes.extend(["port", "routed"].map(|tree| format!("skep/{tree}{way}")));
            let _ = write!(way, "/{}", rest % branches);
            rest /= branches;
        }
        leaves.insert(way);
    }
    for node in nodes {
        let _ = writeln!(script, "list {node}");
    }
    for leaf in leaves {
        let _ = writeln!(script, "for one in $(below skep/port{leaf}); do list $one; done");
    }
    sh(&script)
        .lines()
        .filter_map(|line| line.split_once("Evaluations:")?.1.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

impl Host<'_> {
    /// Everything there is that a teardown could forget.
    pub fn census(&self) -> String {
        let script = format!(
            "ifconfig -l; pfctl -qs rules; pfctl -qs nat; {ANCHORS}; pfctl -qs Tables; arp -an | \
             grep -v incomplete | grep permanent || true; netstat -rn | grep -v '^lo' | awk '{{print $1, $2, $4}}'"
        );
        self.sh(&script).lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")
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
