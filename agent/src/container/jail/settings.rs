//! The `freebsd.jail` part of a specification, as parameters of jail(8).

use serde::Deserialize;

use super::params::{DISABLE, INHERIT, NEW, Value};
use crate::boot::freebsd::devices::RULESET;

/// `freebsd` of a specification, as far as a guest has a say in it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct FreeBsd {
    #[serde(default)]
    jail: Settings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Settings {
    host: Option<Sharing>,
    ip4: Option<Sharing>,
    ip6: Option<Sharing>,
    sysvmsg: Option<Sharing>,
    sysvsem: Option<Sharing>,
    sysvshm: Option<Sharing>,
    enforce_statfs: Option<i32>,
    allow: Option<Allow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sharing {
    New,
    Inherit,
    Disable,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "independent permissions")]
struct Allow {
    set_hostname: bool,
    raw_sockets: bool,
    chflags: bool,
    mount: Vec<String>,
    quotas: bool,
    socket_af: bool,
    reserved_ports: bool,
    suser: bool,
}

impl Default for Allow {
    fn default() -> Self {
        Self {
            set_hostname: false,
            raw_sockets: false,
            chflags: false,
            mount: Vec::new(),
            quotas: false,
            socket_af: false,
            reserved_ports: true,
            suser: true,
        }
    }
}

impl FreeBsd {
    /// Whether its host name is its own.
    pub(super) fn names_itself(&self) -> bool {
        self.jail.host == Some(Sharing::New)
    }

    /// The parameters. What the specification does not say is shared with the guest, as the containers of a pod share
    /// it, and a jail that is told nothing of what it may is treated as the root of a machine of its own.
    pub(super) fn parameters(&self) -> Vec<(String, Value<'static>)> {
        let jail = &self.jail;
        let mut all: Vec<(String, Value<'static>)> = Vec::new();
        for (name, sharing) in [
            ("host", jail.host),
            ("ip4", jail.ip4),
            ("ip6", jail.ip6),
            ("sysvmsg", jail.sysvmsg),
            ("sysvsem", jail.sysvsem),
            ("sysvshm", jail.sysvshm),
        ] {
            let value = match sharing {
                None | Some(Sharing::Inherit) => INHERIT,
                // Addresses of its own would be none: the guest's are the pod's.
                Some(Sharing::New) if name.starts_with("ip") => INHERIT,
                Some(Sharing::New) => NEW,
                Some(Sharing::Disable) => DISABLE,
            };
            all.push((name.to_owned(), value));
        }
        all.push(("devfs_ruleset".to_owned(), Value::Number(RULESET.into())));
        all.push(("enforce_statfs".to_owned(), Value::Number(jail.enforce_statfs.unwrap_or(1))));
        let own_machine = Allow { set_hostname: false, raw_sockets: true, chflags: true, ..Allow::default() };
        let allow = jail.allow.as_ref().unwrap_or(&own_machine);
        let switches = [
            ("set_hostname", allow.set_hostname),
            ("raw_sockets", allow.raw_sockets),
            ("chflags", allow.chflags),
            ("mount", !allow.mount.is_empty()),
            ("quotas", allow.quotas),
            ("socket_af", allow.socket_af),
            ("reserved_ports", allow.reserved_ports),
            ("suser", allow.suser),
        ];
        for (name, on) in switches {
            // What is off by default has a name of its own for off: jail(8).
            let name = if on { format!("allow.{name}") } else { format!("allow.no{name}") };
            all.push((name, Value::On));
        }
        all.extend(allow.mount.iter().map(|kind| (format!("allow.mount.{kind}"), Value::On)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(json: &str) -> Vec<String> {
        let section: FreeBsd = serde_json::from_str(json).expect("json");
        section.parameters().into_iter().map(|(name, value)| format!("{name} {value:?}")).collect()
    }

    #[test]
    fn what_is_not_said_is_the_guests() {
        let plain = names("{}");
        for part in ["host Number(2)", "ip4 Number(2)", "allow.raw_sockets On", "allow.noset_hostname On"] {
            assert!(plain.iter().any(|name| name == part), "{part} is not in {plain:?}");
        }
    }

    #[test]
    fn what_is_said_holds() {
        let said = names(
            r#"{"jail":{"host":"new","ip6":"disable","enforceStatfs":2,"allow":{"mount":["tmpfs"],"reservedPorts":false}}}"#,
        );
        for part in [
            "host Number(1)",
            "ip6 Number(0)",
            "enforce_statfs Number(2)",
            "allow.noraw_sockets On",
            "allow.mount On",
            "allow.mount.tmpfs On",
            "allow.noreserved_ports On",
            "allow.suser On",
        ] {
            assert!(said.iter().any(|name| name == part), "{part} is not in {said:?}");
        }
    }
}
