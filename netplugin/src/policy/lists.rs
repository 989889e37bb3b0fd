//! The lists of a direction.

use serde::{Deserialize, Serialize};

use super::rule::{GroupName, Peer, Rule};

/// One direction of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lists {
    /// What may pass.
    pub allow: Vec<Rule>,
    /// What may not, even if `allow` has it.
    pub deny: Vec<Rule>,
}

/// What is wrong with lists on a network over several hosts that declares no groups, of which each knows its own members of a group alone: to
/// allow a group allows less than all of it there, to deny one would let the members on other hosts in. None if nothing is.
pub(super) fn wrong_across_hosts(lists: [&Lists; 2]) -> Option<String> {
    let group = lists.into_iter().flat_map(|lists| &lists.deny).find_map(|rule| match &rule.peer {
        Peer::Group(group) => Some(group),
        Peer::Any | Peer::Net(_) => None,
    })?;
    Some(format!(
        "denies group `{}`, but the network is on several hosts and each knows its own members only: declare the \
         network's groups (skep net create --group, `policy.groups`), or deny ranges",
        group.as_str()
    ))
}

/// Every group named by a rule of `lists`.
pub(super) fn groups_of<const N: usize>(lists: [&Lists; N]) -> impl Iterator<Item = &GroupName> {
    lists.into_iter().flat_map(|lists| lists.allow.iter().chain(&lists.deny)).filter_map(|rule| {
        match &rule.peer {
            Peer::Group(group) => Some(group),
            Peer::Any | Peer::Net(_) => None,
        }
    })
}
