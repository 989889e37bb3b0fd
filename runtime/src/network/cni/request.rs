//! Which networks a sandbox gets from CNI plugins.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::annotations::{self, NERDCTL_NETWORKS, NETWORKS, NONE, Wishes};
use super::list::is_word;
use super::{CniError, NetworkList, directory};
use crate::config::{AnnotationError, CniMode, Config};
use crate::journal::CniAttachment;
use crate::network::NetworkRequest;

/// Networks that CNI plugins are to make for a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniRequest {
    networks: Vec<NetworkList>,
    container_id: String,
    args: String,
    wishes: Wishes,
    path: Vec<PathBuf>,
    limit_s: u64,
}

/// Says where the network of sandbox `id` comes from, given what its specification says and the annotations of its first
/// container.
pub fn choose<S: BuildHasher>(
    config: &Config,
    given: NetworkRequest,
    annotations: &HashMap<String, String, S>,
    namespace: &str,
    id: &str,
) -> Result<NetworkRequest, CniError> {
    let chosen = annotations.get(NETWORKS).map(|value| annotations::networks(value)).transpose()?;
    let off = config.network.cni == CniMode::Off;
    match (&given, &chosen) {
        (NetworkRequest::Own, _) => {}
        (_, Some(names)) if !names.is_empty() => return Err(CniError::Twice { key: NETWORKS }),
        _ => return Ok(given),
    }
    let lists = match chosen {
        Some(names) if off && !names.is_empty() => return Err(CniError::Off { key: NETWORKS }),
        Some(names) => named_lists(config, &names)?,
        None if off || is_nerdctls(annotations) => return Ok(given),
        None if !config.network.networks.is_empty() => named_lists(config, &config.network.networks)?,
        None => match directory::first(&config.network.conf_dirs)? {
            Some(list) => vec![list],
            None if config.network.cni == CniMode::Required => {
                return Err(CniError::NoConfiguration { dirs: config.network.conf_dirs.clone() });
            }
            None => {
                tracing::info!(sandbox = id, "no CNI configuration: it has no network");
                Vec::new()
            }
        },
    };
    if lists.is_empty() {
        return Ok(NetworkRequest::Nothing);
    }
    // Ids are unique in their namespace.
    let container_id = format!("{namespace}-{id}");
    if !is_word(&container_id) {
        return Err(CniError::ContainerId { id: container_id });
    }
    let wishes = annotations::wishes(annotations)?;
    for (capability, key) in &wishes.needed {
        if !lists[0].has_capability(capability) {
            return Err(AnnotationError::Value {
                key: (*key).to_owned(),
                value: annotations.get(*key).cloned().unwrap_or_default(),
                reason: format!("no plugin of network {} has the capability {capability}", lists[0].name()),
            }
            .into());
        }
    }
    Ok(NetworkRequest::Cni(Box::new(CniRequest {
        networks: lists,
        container_id,
        args: args(annotations),
        wishes,
        path: config.network.bin_dirs.clone(),
        limit_s: config.timeouts.cni_s.duration().as_secs(),
    })))
}

fn named_lists(config: &Config, names: &[String]) -> Result<Vec<NetworkList>, CniError> {
    names.iter().map(|name| directory::find(&config.network.conf_dirs, name)).collect()
}

/// Whether nerdctl looks after the network: where it can, it calls plugins itself; and where none is wanted, there shall
/// be none.
fn is_nerdctls<S: BuildHasher>(annotations: &HashMap<String, String, S>) -> bool {
    let Some(value) = annotations.get(NERDCTL_NETWORKS) else { return false };
    let none = serde_json::from_str::<Vec<String>>(value).is_ok_and(|names| names == [NONE]);
    none || cfg!(target_os = "linux")
}

/// `CNI_ARGS`: what Kubernetes' runtimes say of a pod.
fn args<S: BuildHasher>(annotations: &HashMap<String, String, S>) -> String {
    let mut args = vec!["IgnoreUnknown=1".to_owned()];
    for (key, name) in [
        ("io.kubernetes.cri.sandbox-namespace", "K8S_POD_NAMESPACE"),
        ("io.kubernetes.cri.sandbox-name", "K8S_POD_NAME"),
        ("io.kubernetes.cri.sandbox-id", "K8S_POD_INFRA_CONTAINER_ID"),
        ("io.kubernetes.cri.sandbox-uid", "K8S_POD_UID"),
    ] {
        if let Some(value) = annotations.get(key).filter(|value| !value.contains([';', '='])) {
            args.push(format!("{name}={value}"));
        }
    }
    args.join(";")
}

impl CniRequest {
    /// How many interfaces the sandbox will have.
    pub fn count(&self) -> usize {
        self.networks.len()
    }

    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "there every plugin is given a namespace"))]
    /// The plugin that makes each of the interfaces.
    pub(crate) fn makers(&self) -> impl Iterator<Item = &str> {
        self.networks.iter().filter_map(|list| list.plugins().next())
    }

    /// What ADD is to be told for each network, with `netns` and more of `args` for each.
    pub(crate) fn attachments(&self, each: impl Fn(usize) -> (String, Vec<String>)) -> Vec<CniAttachment> {
        let attachment = |(number, list): (usize, &NetworkList)| {
            let (netns, more) = each(number);
            let mut capabilities: Map<String, Value> = self.wishes.all.clone();
            if number == 0 {
                capabilities.extend(self.wishes.first.clone());
            }
            CniAttachment {
                list: list.source().clone(),
                container_id: self.container_id.clone(),
                netns,
                ifname: format!("eth{number}"),
                args: [vec![self.args.clone()], more].concat().join(";"),
                capabilities,
                path: self.path.clone(),
                limit_s: self.limit_s,
                result: None,
            }
        };
        self.networks.iter().enumerate().map(attachment).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(dir: &tempfile::TempDir, mode: &str) -> Config {
        for (file, name) in [("10-a.conflist", "a"), ("20-b.conflist", "b")] {
            let list = json!({ "cniVersion": "1.0.0", "name": name,
                "plugins": [{ "type": "bridge", "capabilities": { "portMappings": name == "a" } }] });
            std::fs::write(dir.path().join(file), list.to_string()).unwrap();
        }
        let text = format!(
            "[network]\ncni = '{mode}'\nconf_dirs = ['{}']\nbin_dirs = ['/plugins']\n",
            dir.path().display()
        );
        Config::parse(&text, "test").unwrap()
    }

    fn choice(config: &Config, pairs: &[(&str, &str)]) -> Result<NetworkRequest, CniError> {
        let annotations: HashMap<String, String> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        choose(config, NetworkRequest::Own, &annotations, "ns", "c1")
    }

    fn names(request: &NetworkRequest) -> Vec<String> {
        let NetworkRequest::Cni(request) = request else { panic!("{request:?}") };
        let name = |attachment: CniAttachment| attachment.list["name"].as_str().unwrap().to_owned();
        request.attachments(|_| ("0".into(), Vec::new())).into_iter().map(name).collect()
    }

    #[test]
    fn annotations_come_before_the_configuration_and_that_before_the_first_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir, "auto");
        assert_eq!(names(&choice(&config, &[]).unwrap()), ["a"]);
        config.network.networks = vec!["b".into()];
        assert_eq!(names(&choice(&config, &[]).unwrap()), ["b"]);
        assert_eq!(names(&choice(&config, &[(NETWORKS, "b,a")]).unwrap()), ["b", "a"]);
        assert_eq!(choice(&config, &[(NETWORKS, "none")]).unwrap(), NetworkRequest::Nothing);
        assert_eq!(choice(&config, &[(NERDCTL_NETWORKS, "[\"none\"]")]).unwrap(), NetworkRequest::Own);
        let both = [(NERDCTL_NETWORKS, "[\"none\"]"), (NETWORKS, "a")];
        assert_eq!(names(&choice(&config, &both).unwrap()), ["a"]);
        let error = choice(&config, &[(NETWORKS, "c")]).unwrap_err().to_string();
        assert!(error.starts_with("there is no CNI network c in "), "{error}");
    }

    #[test]
    fn off_is_off_and_a_network_of_the_callers_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let off = config(&dir, "off");
        assert_eq!(choice(&off, &[]).unwrap(), NetworkRequest::Own);
        assert_eq!(choice(&off, &[(NETWORKS, "none")]).unwrap(), NetworkRequest::Nothing);
        assert!(choice(&off, &[(NETWORKS, "a")]).unwrap_err().to_string().contains("network.cni is \"off\""));
        let given = || NetworkRequest::Join("/run/netns/x".into());
        let on = config(&dir, "required");
        assert_eq!(choose(&on, given(), &HashMap::<String, String>::new(), "ns", "c").unwrap(), given());
        let named = HashMap::from([(NETWORKS.to_owned(), "a".to_owned())]);
        assert!(matches!(choose(&on, given(), &named, "ns", "c"), Err(CniError::Twice { .. })));
    }

    #[test]
    fn without_a_configuration_it_depends() {
        let dir = tempfile::tempdir().unwrap();
        let with = |mode| {
            let mut config = config(&dir, mode);
            config.network.conf_dirs = vec![dir.path().join("none")];
            choice(&config, &[])
        };
        assert_eq!(with("auto").unwrap(), NetworkRequest::Nothing);
        assert!(with("required").unwrap_err().to_string().contains("no CNI configuration in "));
    }

    #[test]
    fn what_no_plugin_can_do_is_refused_and_the_rest_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir, "auto");
        let ports = ("org.skep.ports", "8080:80");
        let error = choice(&config, &[ports, (NETWORKS, "b")]).unwrap_err().to_string();
        assert!(error.contains("no plugin of network b has the capability portMappings"), "{error}");
        let pod = ("io.kubernetes.cri.sandbox-name", "web");
        let NetworkRequest::Cni(request) = choice(&config, &[ports, (NETWORKS, "a,b"), pod]).unwrap() else {
            panic!()
        };
        let told = request.attachments(|number| (format!("jail{number}"), vec![format!("X={number}")]));
        assert_eq!((told[0].container_id.as_str(), told[1].ifname.as_str()), ("ns-c1", "eth1"));
        assert_eq!(told[1].args, "IgnoreUnknown=1;K8S_POD_NAME=web;X=1");
        assert!(told[0].capabilities.contains_key("portMappings"));
        assert!(!told[1].capabilities.contains_key("portMappings"));
        assert_eq!(told[1].netns, "jail1");
        let annotations: HashMap<String, String> = HashMap::new();
        let error = choose(&config, NetworkRequest::Own, &annotations, "a b", "c").unwrap_err();
        assert!(error.to_string().contains("`a b-c`"), "{error}");
    }
}
