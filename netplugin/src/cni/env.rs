//! The environment a CNI plugin is called with.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::mac::{Mac, MacError};

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Detach it.
    Del,
    /// Is it still attached as it was?
    Check,
    /// Detach everything that is not in the given list.
    Gc,
    /// Could the plugin serve an ADD now?
    Status,
    /// Which versions of the specification does the plugin speak?
    Version,
}

/// Why the environment is not usable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    /// A variable that this command needs is missing or empty.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A variable's value breaks the rules of the specification.
    #[error("{variable} `{value}` {why}")]
    Invalid {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// `CNI_ARGS` names something this plugin does not know, and `IgnoreUnknown` is not set.
    #[error("CNI_ARGS has `{0}`, which is unknown here, and no IgnoreUnknown=1")]
    UnknownArg(String),
    /// `CNI_ARGS` holds an unusable MAC.
    #[error("CNI_ARGS: MAC: {0}")]
    Mac(#[from] MacError),
}

/// What `CNI_ARGS` may carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `IP`: the addresses wanted.
    pub ips: Vec<IpAddr>,
    /// `MAC`: the Ethernet address wanted.
    pub mac: Option<Mac>,
    /// `SKEP_TAP`: a tap of the runtime's that is to be the sandbox's port (FreeBSD).
    pub tap: Option<String>,
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME`, when both are there.
    pub pod: Option<(String, String)>,
}

/// One container's interface, as ADD, DEL and CHECK name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface's name inside the container.
    pub ifname: String,
    /// `CNI_NETNS`: path of a network namespace (Linux) or name of a vnet jail (FreeBSD). DEL may lack it.
    pub netns: Option<String>,
    /// `CNI_ARGS`.
    pub args: Args,
}

/// A whole call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// The interface meant, for the commands that mean one.
    pub attach: Option<Attach>,
    /// `CNI_PATH`: where delegated plugins are.
    pub path: Vec<PathBuf>,
}

impl Invocation {
    /// Reads a call from variables looked up by `get`.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, EnvError> {
        let need = |name: &'static str| get(name).filter(|v| !v.is_empty()).ok_or(EnvError::Missing(name));
        let verb = need("CNI_COMMAND")?;
        let command = match verb.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            _ => {
                return Err(invalid("CNI_COMMAND", &verb, "is none of ADD, DEL, CHECK, GC, STATUS, VERSION"));
            }
        };
        let path = get("CNI_PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let attach = match command {
            Command::Add | Command::Check | Command::Del => {
                let netns = get("CNI_NETNS").filter(|v| !v.is_empty());
                if netns.is_none() && command != Command::Del {
                    return Err(EnvError::Missing("CNI_NETNS"));
                }
                Some(Attach {
                    container_id: container_id(need("CNI_CONTAINERID")?)?,
                    ifname: ifname(need("CNI_IFNAME")?)?,
                    netns,
                    args: args(&get("CNI_ARGS").unwrap_or_default())?,
                })
            }
            Command::Gc | Command::Status | Command::Version => None,
        };
        Ok(Self { command, attach, path })
    }

    /// The first file called `name` in `CNI_PATH`.
    pub fn find_plugin(&self, name: &str) -> Option<PathBuf> {
        self.path.iter().filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|path| is_file(path))
    }
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file())
}

fn invalid(variable: &'static str, value: &str, why: &'static str) -> EnvError {
    EnvError::Invalid { variable, value: value.to_owned(), why }
}

fn container_id(id: String) -> Result<String, EnvError> {
    let ok = id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if !ok {
        return Err(invalid(
            "CNI_CONTAINERID",
            &id,
            "is not a letter or digit followed by letters, digits, `_`, `.`, `-`",
        ));
    }
    if id.len() > 1024 {
        return Err(invalid("CNI_CONTAINERID", &id, "is longer than 1024 bytes"));
    }
    Ok(id)
}

fn ifname(name: String) -> Result<String, EnvError> {
    check_ifname(&name).map_err(|why| invalid("CNI_IFNAME", &name, why))?;
    Ok(name)
}

/// The rules for an interface's name that both systems share, and the kernel's own on top.
pub(crate) fn check_ifname(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > 15 {
        return Err("is not 1 to 15 bytes long");
    }
    if name == "." || name == ".." {
        return Err("is a directory's name");
    }
    if name.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'/' || byte == b':' || byte == b'%') {
        return Err("has a character no interface's name may have");
    }
    Ok(())
}

fn args(text: &str) -> Result<Args, EnvError> {
    let mut found = Args::default();
    let mut unknown = None;
    let mut ignore = false;
    let (mut namespace, mut pod) = (None, None);
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| invalid("CNI_ARGS", pair, "is not KEY=VALUE"))?;
        match key {
            "IgnoreUnknown" => ignore = matches!(value, "1" | "true" | "TRUE" | "True"),
            "IP" => {
                for ip in value.split(',') {
                    let ip = ip.split('/').next().unwrap_or(ip);
                    found
                        .ips
                        .push(ip.parse().map_err(|_| invalid("CNI_ARGS", pair, "is not an IP address"))?);
                }
            }
            "MAC" => found.mac = Some(value.parse()?),
            "SKEP_TAP" if cfg!(target_os = "freebsd") => {
                check_ifname(value).map_err(|why| invalid("CNI_ARGS", pair, why))?;
                found.tap = Some(value.to_owned());
            }
            "K8S_POD_NAMESPACE" => namespace = Some(value.to_owned()),
            "K8S_POD_NAME" => pod = Some(value.to_owned()),
            "K8S_POD_INFRA_CONTAINER_ID" | "K8S_POD_UID" => {}
            _ => unknown = Some(key.to_owned()),
        }
    }
    found.pod = namespace.zip(pod);
    match unknown {
        Some(key) if !ignore => Err(EnvError::UnknownArg(key)),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(vars: &[(&str, &str)]) -> Result<Invocation, EnvError> {
        Invocation::parse(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned()))
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
    ];

    #[test]
    fn each_command_needs_what_the_specification_says() {
        assert!(parse(&ADD).is_ok());
        assert_eq!(parse(&ADD[..3]), Err(EnvError::Missing("CNI_NETNS")));
        let mut del = ADD;
        del[0].1 = "DEL";
        assert!(parse(&del[..3]).unwrap().attach.unwrap().netns.is_none());
        assert_eq!(parse(&del[..2]), Err(EnvError::Missing("CNI_IFNAME")));
        for verb in ["GC", "STATUS", "VERSION"] {
            assert!(parse(&[("CNI_COMMAND", verb)]).unwrap().attach.is_none());
        }
        assert!(matches!(parse(&[("CNI_COMMAND", "add")]), Err(EnvError::Invalid { .. })));
        assert_eq!(parse(&[]), Err(EnvError::Missing("CNI_COMMAND")));
    }

    #[test]
    fn ids_and_names_keep_the_rules() {
        for id in ["-a", "a/b", "a b", "ä", "../x"] {
            assert!(container_id(id.to_owned()).is_err(), "{id}");
        }
        for name in ["..", "a/b", "a b", "a:b", "sixteen-bytes-xx", "%d"] {
            assert!(ifname(name.to_owned()).is_err(), "{name}");
        }
    }

    #[test]
    fn args_are_refused_unless_told_to_ignore() {
        assert_eq!(args("FOO=1"), Err(EnvError::UnknownArg("FOO".to_owned())));
        assert_eq!(args("FOO=1;IgnoreUnknown=1"), Ok(Args::default()));
        let found =
            args("IP=10.0.0.9/24,fd00::9;MAC=02:00:00:00:00:09;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b").unwrap();
        assert_eq!(found.ips.len(), 2);
        assert_eq!(found.pod, Some(("a".to_owned(), "b".to_owned())));
        assert!(args("IP=nonsense").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused_without_panic(a in ".*", b in ".*") {
            let _ = args(&a);
            let _ = container_id(a);
            if let Ok(name) = ifname(b) {
                prop_assert!(name.len() <= 15 && !name.contains('/'));
            }
        }
    }
}
