//! Results for people.

use std::fmt::Write as _;

use crate::plugin::{Carried, Status};
use crate::policy::{GroupName, Groups};
use crate::vpc::Declaration;
use crate::vpc::sync::{Outcome, Report};

fn list(items: impl IntoIterator<Item = String>) -> String {
    let text = items.into_iter().collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".to_owned() } else { text }
}

pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    if status.networks.is_empty() {
        text.push_str("no networks on this host\n");
    }
    for network in &status.networks {
        let _ = writeln!(
            text,
            "network {}  bridge {}  mtu {}  gateway {}",
            network.name,
            network.bridge,
            network.mtu,
            list(network.gateways.iter().map(ToString::to_string)),
        );
        for link in &network.links {
            let Carried { received_bytes: received, sent_bytes: sent, .. } = link.carried.unwrap_or_default();
            let _ = writeln!(
                text,
                "  link {}  vni {}  from {}  to {}  sent {sent} B  received {received} B",
                link.name,
                link.vni,
                link.local,
                list(link.peers.iter().map(|peer| format!("{} ({})", peer.name, peer.address))),
            );
        }
        for (group, ranges) in network.groups.iter().flat_map(Groups::iter) {
            let members = network.attachments.iter().filter(|one| one.group.as_ref() == Some(group));
            let ranges = list(ranges.iter().map(ToString::to_string));
            let _ = writeln!(text, "  group {}  {ranges}  {} here", group.as_str(), members.count());
        }
        for one in &network.attachments {
            let counters = &one.counters;
            let _ = writeln!(
                text,
                "  {:.12}/{}  {}  {}  group {}  ports {}  sent {} B  received {} B  refused {} out, {} in  spoofed {}",
                one.container_id,
                one.ifname,
                one.host_ifname,
                list(one.addresses.iter().map(ToString::to_string)),
                one.group.as_ref().map_or("-", GroupName::as_str),
                list(one.ports.clone()),
                counters.sent_bytes,
                counters.received_bytes,
                counters.denied_out_packets,
                counters.denied_in_packets,
                counters.spoofed_packets,
            );
            for problem in &one.problems {
                let _ = writeln!(text, "    problem: {problem}");
            }
        }
        for problem in &network.problems {
            let _ = writeln!(text, "  problem: {problem}");
        }
    }
    for orphan in &status.orphans {
        let _ = writeln!(text, "orphan: {orphan} is in no record (skep net gc --orphans removes it)");
    }
    text
}

pub(super) fn declarations(all: &[Declaration]) -> String {
    let mut text =
        format!("{:<20} {:>8} {:>8} {:<6} {:<24} NODES\n", "NETWORK", "REVISION", "VNI", "MODE", "SUBNETS");
    for one in all {
        let mode = if one.mode == crate::vxlan::Mode::Mesh { "mesh" } else { "flood" };
        let subnets = list(one.subnets.iter().map(ToString::to_string));
        let nodes = list(one.nodes.iter().map(|node| node.name.clone()));
        let _ = writeln!(
            text,
            "{:<20} {:>8} {:>8} {mode:<6} {subnets:<24} {nodes}",
            one.name, one.revision, one.vni
        );
    }
    text
}

pub(super) fn reports(declaration: &Declaration, reports: &[Report]) -> String {
    let mut text = format!("{:<20} {:<32} RESULT\n", "NODE", "BY");
    let mut missing = Vec::new();
    for report in reports {
        let result = match &report.outcome {
            Outcome::Changed => format!("has revision {} now", declaration.revision),
            Outcome::Unchanged => format!("had revision {} already", declaration.revision),
            Outcome::Left => "is none of its nodes any more, and has nothing of it".to_owned(),
            Outcome::Failed { why } => {
                missing.push(report.node.clone());
                format!("FAILED: {why}")
            }
        };
        let _ = writeln!(text, "{:<20} {:<32} {result}", report.node, report.destination);
    }
    if !missing.is_empty() {
        let _ = writeln!(
            text,
            "network {} in revision {} is not everywhere yet: {} of {} hosts failed ({}). Nodes that have it are left as \
             they are when you sync again. A removed host that will never be back: skep net sync --forget NAME.",
            declaration.name,
            declaration.revision,
            missing.len(),
            reports.len(),
            missing.join(", "),
        );
    }
    text
}
