//! Whether a configuration's declared groups and its addresses fit together.

use super::config_error::{ConfigError, wrong};
use crate::ipam::{IpamConfig, Range};
use crate::policy::{GroupName, Groups, NetworkPolicy};

/// Checks that members of each group get addresses of its ranges, and nobody else does.
pub(super) fn check_groups(policy: &NetworkPolicy, ipam: &IpamConfig) -> Result<(), ConfigError> {
    let Some(groups) = &policy.groups else {
        return match ipam {
            IpamConfig::Own(own) if !own.groups.is_empty() => Err(wrong(
                "ipam.groups",
                "is there, but no `policy.groups` that says which ranges a group has",
            )),
            _ => Ok(()),
        };
    };
    groups.check().map_err(|why| wrong("policy.groups", why))?;
    if let Some(group) = &policy.group {
        groups.check_declared(group).map_err(|why| wrong("policy.group", why))?;
    }
    match ipam {
        IpamConfig::Own(own) => {
            for (group, sets) in &own.groups {
                groups.check_declared(group).map_err(|why| wrong("ipam.groups", why))?;
                sets.iter().flatten().try_for_each(|range| check_inside(groups, group, range))?;
            }
            own.sets.iter().flatten().try_for_each(|range| check_outside(groups, range))?;
            let gateways = own.ranges().map(|range| range.gateway);
            groups
                .check_member(None, gateways)
                .map_err(|why| wrong("policy.groups", format!("{why}: it is the gateway's")))
        }
        IpamConfig::Delegated(name) if !groups.is_empty() => Err(wrong(
            "policy.groups",
            format!("needs the addresses of `ipam` type `skep`: `{name}` does not know which are whose"),
        )),
        // The plugin before us in a chain gives addresses: each ADD looks at them.
        IpamConfig::Delegated(_) | IpamConfig::None => Ok(()),
    }
}

fn check_inside(groups: &Groups, group: &GroupName, range: &Range) -> Result<(), ConfigError> {
    let mut nets = groups.ranges(group).unwrap_or_default().iter();
    if nets.any(|net| net.contains(&range.start) && net.contains(&range.end)) {
        return Ok(());
    }
    let why =
        format!("`{}`: {} to {} is not in a range of the group", group.as_str(), range.start, range.end);
    Err(wrong("ipam.groups", why))
}

fn check_outside(groups: &Groups, range: &Range) -> Result<(), ConfigError> {
    let hit = |net: &&ipnet::IpNet| net.network() <= range.end && range.start <= net.broadcast();
    for (group, nets) in groups.iter() {
        if let Some(net) = nets.iter().find(hit) {
            let name = group.as_str();
            let why = format!("{} to {} overlaps {net}, which is group `{name}`'s", range.start, range.end);
            return Err(wrong("ipam.ranges", why));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "tests")]
mod tests {
    use crate::cni::NetConf;
    use serde_json::{Value, json};

    fn parse(policy: Value, ipam: Value) -> Result<NetConf, String> {
        let conf =
            json!({"cniVersion": "1.0.0", "name": "x", "type": "skep-cni", "policy": policy, "ipam": ipam});
        NetConf::parse(conf.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn ipam(groups: Value) -> Value {
        json!({"type": "skep", "ranges": [[{"subnet": "10.1.0.0/16", "rangeEnd": "10.1.15.255"}], [{"subnet": "fd01::/64", "rangeEnd": "fd01::ffff"}]],
               "groups": groups})
    }

    fn web(start: &str, end: &str) -> Value {
        json!({"web": [[{"subnet": "10.1.0.0/16", "rangeStart": start, "rangeEnd": end}]]})
    }

    #[test]
    fn groups_and_addresses_fit_together_or_it_is_said_what_does_not() {
        let groups = json!({"web": ["10.1.16.0/20", "fd01::1:0/112"], "db": ["10.1.32.0/20"]});
        let right = ipam(web("10.1.16.0", "10.1.16.255"));
        parse(
            json!({"groups": groups, "group": "db", "ingress": {"deny": [{"group": "web"}]}}),
            right.clone(),
        )
        .unwrap();
        parse(json!({"groups": {}}), json!({"type": "host-local"})).unwrap();
        for (policy, ipam, want) in [
            (json!({}), right.clone(), "ipam.groups: is there, but no `policy.groups`"),
            (json!({"groups": {"web": []}}), right.clone(), "policy.groups: `web` has no range"),
            (
                json!({"groups": groups, "group": "x"}),
                right.clone(),
                "policy.group: group `x` is not declared",
            ),
            (
                json!({"groups": groups, "egress": {"allow": [{"group": "cache"}]}}),
                right.clone(),
                "policy: group `cache` is not declared on this network (declared: db, web)",
            ),
            (
                json!({"groups": {}, "egress": {"allow": [{"group": "web"}]}}),
                ipam(json!({})),
                "(declared: none)",
            ),
            (
                json!({"groups": {"db": ["10.1.32.0/20"]}}),
                right.clone(),
                "ipam.groups: group `web` is not declared",
            ),
            (
                json!({"groups": groups}),
                ipam(web("10.1.16.0", "10.1.32.0")),
                "ipam.groups: `web`: 10.1.16.0 to 10.1.32.0 is not in a range of the group",
            ),
            (
                json!({"groups": {"web": ["10.1.8.0/21"]}}),
                ipam(json!({})),
                "ipam.ranges: 10.1.0.1 to 10.1.15.255 overlaps 10.1.8.0/21, which is group `web`'s",
            ),
            (
                json!({"groups": {"web": ["10.1.0.0/30"]}}),
                json!({"type": "skep", "subnet": "10.1.0.0/16", "rangeStart": "10.1.1.0"}),
                "policy.groups: address 10.1.0.1 is group `web`'s",
            ),
            (
                json!({"groups": groups}),
                json!({"type": "host-local"}),
                "policy.groups: needs the addresses of `ipam`",
            ),
        ] {
            let why = parse(policy.clone(), ipam).unwrap_err();
            assert!(why.contains(want), "{policy}: {why}");
        }
    }
}
