//! `ipam` of type `dhcp`, spelled as containernetworking's plugin of that name has it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::message::{Identity, option};
use crate::cni::Attach;
use crate::ipam::IpamError;
use crate::mac::Mac;

/// What is asked for unless it is skipped.
const DEFAULTS: [u8; 5] =
    [option::SUBNET_MASK, option::CLASSLESS_ROUTES, option::ROUTERS, option::DNS, option::DOMAIN];
/// Options that are the client's own to send, and what marks the ends.
const RESERVED: [u8; 11] = [
    0,
    option::REQUESTED_ADDRESS,
    option::LEASE_TIME,
    option::OVERLOAD,
    option::MESSAGE_TYPE,
    option::SERVER,
    option::REQUEST_LIST,
    option::MAX_SIZE,
    option::RENEWAL_TIME,
    option::REBINDING_TIME,
    255,
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(rename = "type")]
    _type: String,
    #[serde(default)]
    provide: Vec<Provide>,
    #[serde(default)]
    request: Vec<Request>,
    priority: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provide {
    option: String,
    value: Option<String>,
    from_arg: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    #[serde(default)]
    skip_default: bool,
    option: Option<String>,
}

/// How a network's sandboxes ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpConfig {
    provide: Vec<(u8, String, Option<String>)>,
    request: Vec<u8>,
    /// The metric of the routes.
    pub priority: Option<u32>,
}

fn wrong(field: &str, why: impl Into<String>) -> IpamError {
    IpamError::Config { field: format!("ipam.{field}"), why: why.into() }
}

/// The number of an option, or of the name that dhcp-options(5) has for it.
fn number(field: &str, name: &str) -> Result<u8, IpamError> {
    let number = match name {
        "subnet-mask" => option::SUBNET_MASK,
        "routers" => option::ROUTERS,
        "domain-name-servers" => option::DNS,
        "domain-name" => option::DOMAIN,
        "host-name" => option::HOST_NAME,
        "vendor-class-identifier" => option::VENDOR_CLASS,
        "dhcp-client-identifier" => option::CLIENT_ID,
        "user-class" => option::USER_CLASS,
        _ => {
            name.parse().map_err(|_| wrong(field, format!("`{name}` is no option's number or known name")))?
        }
    };
    if RESERVED.contains(&number) {
        return Err(wrong(field, format!("option {number} is the client's own")));
    }
    Ok(number)
}

impl DhcpConfig {
    /// Reads `ipam` of a whole configuration.
    pub fn parse(configuration: &[u8]) -> Result<Self, IpamError> {
        let mut whole: Value =
            serde_json::from_slice(configuration).map_err(|error| wrong("type", error.to_string()))?;
        let raw: Raw = serde_path_to_error::deserialize(whole["ipam"].take())
            .map_err(|error| wrong(&error.path().to_string(), error.inner().to_string()))?;
        let mut provide = Vec::new();
        for Provide { option, value, from_arg } in raw.provide {
            let number = number("provide", &option)?;
            if value.is_none() && from_arg.is_none() {
                return Err(wrong("provide", format!("option {option} has neither `value` nor `fromArg`")));
            }
            if let Some(arg) = from_arg.as_deref().filter(|arg| !ARGS.contains(arg)) {
                return Err(wrong("provide", format!("fromArg `{arg}` is none of {}", ARGS.join(", "))));
            }
            provide.push((number, value.unwrap_or_default(), from_arg));
        }
        let skipped = raw.request.iter().any(|one| one.skip_default);
        let mut request = if skipped { Vec::new() } else { DEFAULTS.to_vec() };
        for name in raw.request.iter().filter_map(|one| one.option.as_deref()) {
            let number = number("request", name)?;
            if !request.contains(&number) {
                request.push(number);
            }
        }
        Ok(Self { provide, request, priority: raw.priority })
    }

    /// Whom an attachment's sandbox is to a server.
    pub fn identity(&self, network: &str, attach: &Attach, mac: Mac) -> Result<Identity, IpamError> {
        let mut provide = BTreeMap::new();
        let mut client_id = Identity::client_id_of(network, &attach.container_id, &attach.ifname);
        for (number, value, from_arg) in &self.provide {
            let pod = attach.args.pod.as_ref();
            let found = match from_arg.as_deref() {
                Some(NAMESPACE) => pod.map(|(namespace, _)| namespace),
                Some(_) => pod.map(|(_, name)| name),
                None => None,
            };
            // An argument that is not there leaves the option to its value, if it has one.
            let text = found.unwrap_or(value);
            if text.is_empty() {
                continue;
            }
            if text.len() > 255 {
                return Err(wrong("provide", format!("option {number} is longer than 255 bytes")));
            }
            match *number {
                option::CLIENT_ID => client_id = text.clone().into_bytes(),
                number => drop(provide.insert(number, text.clone().into_bytes())),
            }
        }
        // What smoltcp and servers have room for in one packet.
        if provide.values().map(Vec::len).sum::<usize>() > 1000 {
            return Err(wrong("provide", "is longer than a message has room for"));
        }
        Ok(Identity { mac, client_id, provide, request: self.request.clone() })
    }
}

const NAMESPACE: &str = "K8S_POD_NAMESPACE";
/// What is kept of `CNI_ARGS`.
const ARGS: [&str; 2] = [NAMESPACE, "K8S_POD_NAME"];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(ipam: &Value) -> Result<DhcpConfig, IpamError> {
        DhcpConfig::parse(&serde_json::to_vec(&json!({"name": "x", "ipam": ipam})).unwrap())
    }

    fn attach(pod: Option<(&str, &str)>) -> Attach {
        let pod = pod.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        Attach {
            container_id: "c".to_owned(),
            ifname: "eth0".to_owned(),
            netns: None,
            args: crate::cni::Args { pod, ..Default::default() },
        }
    }

    #[test]
    fn what_is_asked_and_told_can_be_chosen() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let plain = parse(&json!({"type": "dhcp"})).unwrap().identity("n", &attach(None), mac).unwrap();
        assert_eq!(plain.request, DEFAULTS);
        assert!(plain.provide.is_empty());
        let chosen = parse(&json!({"type": "dhcp", "priority": 7,
            "request": [{"skipDefault": true}, {"option": "subnet-mask"}, {"option": "42"}],
            "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}, {"option": "60", "value": "skep"},
                {"option": "dhcp-client-identifier", "value": "me"}]}))
        .unwrap();
        assert_eq!(chosen.priority, Some(7));
        let identity = chosen.identity("n", &attach(Some(("ns", "web"))), mac).unwrap();
        assert_eq!(identity.request, [1, 42]);
        assert_eq!(identity.client_id, b"me");
        assert_eq!(identity.provide, BTreeMap::from([(12, b"web".to_vec()), (60, b"skep".to_vec())]));
        // Without a pod there is no name of one.
        let identity = chosen.identity("n", &attach(None), mac).unwrap();
        assert_eq!(identity.provide, BTreeMap::from([(60, b"skep".to_vec())]));
    }

    #[test]
    fn mistakes_name_the_field() {
        for (ipam, want) in [
            (json!({"type": "dhcp", "daemonSocketPath": "/x"}), "daemonSocketPath"),
            (json!({"type": "dhcp", "request": [{"option": "nonsense"}]}), "ipam.request"),
            (json!({"type": "dhcp", "request": [{"option": "256"}]}), "ipam.request"),
            (json!({"type": "dhcp", "provide": [{"option": "51", "value": "1"}]}), "option 51"),
            (json!({"type": "dhcp", "provide": [{"option": "12"}]}), "neither"),
            (json!({"type": "dhcp", "provide": [{"option": "12", "fromArg": "X"}]}), "fromArg"),
            (json!({"type": "dhcp", "provide": [{"option": 12}]}), "ipam.provide[0].option"),
        ] {
            let error = parse(&ipam).unwrap_err().to_string();
            assert!(error.contains(want), "{ipam}: {error}");
        }
    }
}
