//! What a request for a sandbox asks for.

use std::{collections::HashMap, path::PathBuf};

use oci_spec::runtime::LinuxNamespaceType;
use protobuf::Message as _;
use skep::{
    cgroup::CgroupPath,
    config::{Config, PodOptions},
    container::ErrorKind,
    guest::GuestOs,
    network::NetworkRequest,
    os::{self, MountRequest},
    sandbox::{Entry, GuestSettings, Sandbox},
};
use skep_containerd_api::{
    pod::{LinuxContainerResources, NamespaceMode, PodSandboxConfig},
    sandbox::CreateSandboxRequest,
};

use super::{
    directory,
    files::{Files, resolver},
};
use crate::{bundle::Bundle, convert::Failure};

/// The type of the options that containerd's CRI plugin sends.
const POD: &str = "runtime.v1.PodSandboxConfig";
/// What the files of a pod can have in all, a few times what is written at first.
const FILES_SIZE: &str = "size=262144";
/// Size of a pod's /dev/shm, as containerd's CRI plugin has it.
const POD_SHM: u64 = 64 << 20;

/// What a sandbox is to be.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Size of the VM and the like.
    pub(crate) options: PodOptions,
    /// Host name, if one is given.
    pub(crate) hostname: Option<String>,
    /// Where the network comes from.
    pub(crate) network: NetworkRequest,
    /// What the guest's kernel is told.
    pub(crate) settings: GuestSettings,
    /// The cgroup where the host counts and limits it, if one is named.
    pub(crate) cgroup: Option<CgroupPath>,
    /// For a pod: the content of resolv.conf.
    resolver: Option<String>,
}

impl Wanted {
    /// Nothing but what the configuration says.
    #[cfg(test)]
    pub(crate) fn plain(config: &Config) -> Self {
        Self {
            options: PodOptions::defaults(config),
            hostname: None,
            network: NetworkRequest::Own,
            settings: GuestSettings::default(),
            cgroup: None,
            resolver: None,
        }
    }

    /// Reads a request: its options are a pod's if they are of that type, and nothing to a shim otherwise. A client may
    /// give a specification as well, of which host name, annotations and network are a sandbox's.
    pub(crate) fn read(config: &Config, request: &CreateSandboxRequest) -> Result<Self, Failure> {
        let invalid =
            |error: &dyn std::fmt::Display| Failure::new(ErrorKind::InvalidArgument, &error.to_string());
        let bundle = Bundle::new(PathBuf::from(&request.bundle_path));
        let spec = bundle.spec_if_any().map_err(|error| invalid(&error))?.unwrap_or_default();
        let pod = match request.options.as_ref() {
            Some(any) if any.type_url.rsplit('/').next() == Some(POD) => {
                Some(PodSandboxConfig::parse_from_bytes(&any.value).map_err(|error| invalid(&error))?)
            }
            _ => None,
        };
        let mut annotations = spec.annotations().clone().unwrap_or_default();
        annotations.extend(request.annotations.clone());
        let mut hostname = spec.hostname().clone();
        let mut settings = GuestSettings::default();
        if let Some(pod) = &pod {
            refuse_the_hosts(pod)?;
            annotations.extend(pod.annotations.clone());
            annotations.extend(size(&pod.linux.resources));
            hostname = Some(pod.hostname.clone());
            settings.sysctls.clone_from(&pod.linux.sysctls);
            settings.shm_bytes = Some(POD_SHM);
        }
        if let Some(bytes) = PodOptions::shm_bytes(&annotations).map_err(|error| invalid(&error))? {
            settings.shm_bytes = Some(bytes);
        }
        let network = if request.netns_path.is_empty() {
            spec.linux()
                .iter()
                .flat_map(|linux| linux.namespaces().iter().flatten())
                .filter(|namespace| namespace.typ() == LinuxNamespaceType::Network)
                .find_map(|namespace| namespace.path().clone())
                .map_or(NetworkRequest::Own, NetworkRequest::Join)
        } else {
            NetworkRequest::Join(PathBuf::from(&request.netns_path))
        };
        let named = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        let cgroup =
            match pod.as_ref().map(|pod| pod.linux.cgroup_parent.as_str()).filter(|name| !name.is_empty()) {
                Some(parent) => CgroupPath::of_pod(parent, &request.sandbox_id),
                None => named.map_or(Ok(None), |path| CgroupPath::parse(&path.to_string_lossy())),
            };
        Ok(Self {
            options: PodOptions::from_annotations(config, &annotations).map_err(|error| invalid(&error))?,
            hostname: hostname.filter(|name| !name.is_empty()),
            network,
            settings,
            cgroup: cgroup.map_err(|error| invalid(&error))?,
            resolver: pod.map(|pod| resolver(pod.dns_config.as_ref())),
        })
    }

    /// Whether it is a pod, whose files are its sandbox's to make. Jails do not get them yet.
    pub(crate) fn is_pod(&self) -> bool {
        self.resolver.is_some() && self.os() == GuestOs::Linux
    }

    /// The guest's system: Linux unless an annotation says otherwise, as no image is known yet.
    pub(crate) fn os(&self) -> GuestOs {
        self.options.os.unwrap_or_default()
    }

    /// Makes the files of a pod.
    pub(crate) fn write_files(
        &self,
        sandbox: &Sandbox,
        network: Option<&skep::network::GuestNetwork>,
    ) -> anyhow::Result<()> {
        let Some(resolver) = self.resolver.as_ref().filter(|_| self.is_pod()) else { return Ok(()) };
        let target = directory(sandbox);
        std::fs::create_dir(&target)?;
        // A file system of its own: its containers may write to these files, and what the sandbox's directory is on is
        // the host's memory.
        sandbox.journal().record(Entry::Mount { target: target.clone() })?;
        os::mount(&MountRequest {
            fstype: "tmpfs".into(),
            source: "skep".into(),
            target: target.clone(),
            options: ["nosuid", "nodev", "noexec", "mode=755", FILES_SIZE].map(str::to_owned).into(),
        })?;
        let files = Files { hostname: self.hostname.as_deref().unwrap_or(sandbox.id()), resolver, network };
        Ok(files.write(&target)?)
    }
}

/// What a microVM can't share with the host.
fn refuse_the_hosts(pod: &PodSandboxConfig) -> Result<(), Failure> {
    let modes = &pod.linux.security_context.namespace_options;
    for (mode, name, field) in [
        (modes.network, "network", "hostNetwork"),
        (modes.pid, "pid", "hostPID"),
        (modes.ipc, "ipc", "hostIPC"),
    ] {
        if mode.enum_value() == Ok(NamespaceMode::NODE) {
            return Err(Failure::unimplemented(&format!(
                "the pod asks for the host's {name} namespace: a microVM can't share it, run the pod without {field}"
            )));
        }
    }
    Ok(())
}

/// A pod's limits as annotations, which is how they come where its own container has a specification.
fn size(resources: &LinuxContainerResources) -> HashMap<String, String> {
    [
        ("io.kubernetes.cri.sandbox-cpu-period", resources.cpu_period),
        ("io.kubernetes.cri.sandbox-cpu-quota", resources.cpu_quota),
        ("io.kubernetes.cri.sandbox-memory", resources.memory_limit_in_bytes),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_string()))
    .into()
}

#[cfg(test)]
mod tests {
    use protobuf::well_known_types::any::Any;
    use skep_containerd_api::pod::{
        DNSConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption,
    };

    use super::*;

    fn request(pod: &PodSandboxConfig) -> CreateSandboxRequest {
        let options = Any { type_url: POD.into(), value: pod.write_to_bytes().unwrap(), ..Any::default() };
        CreateSandboxRequest {
            sandbox_id: "s".into(),
            bundle_path: "/no/such/bundle".into(),
            options: Some(options).into(),
            netns_path: "/run/netns/x".into(),
            ..CreateSandboxRequest::default()
        }
    }

    fn pod() -> PodSandboxConfig {
        let resources = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 150_000,
            memory_limit_in_bytes: 64 << 20,
            ..LinuxContainerResources::default()
        };
        let linux = LinuxPodSandboxConfig {
            sysctls: HashMap::from([("kernel.shm_rmid_forced".to_owned(), "1".to_owned())]),
            resources: Some(resources).into(),
            cgroup_parent: "/kubepods/pod1".into(),
            ..LinuxPodSandboxConfig::default()
        };
        let dns = DNSConfig { servers: vec!["10.0.0.2".into()], ..DNSConfig::default() };
        PodSandboxConfig {
            hostname: "web".into(),
            dns_config: Some(dns).into(),
            linux: Some(linux).into(),
            ..PodSandboxConfig::default()
        }
    }

    #[test]
    fn a_pod_says_what_its_sandbox_is() {
        let config = Config::default();
        let wanted = Wanted::read(&config, &request(&pod())).unwrap();
        assert_eq!(wanted.hostname.as_deref(), Some("web"));
        assert_eq!(wanted.network, NetworkRequest::Join("/run/netns/x".into()));
        assert_eq!(wanted.options.vcpus.get(), 2);
        assert_eq!(wanted.options.memory.mib(), PodOptions::defaults(&config).memory.mib() + 64);
        assert_eq!(wanted.settings.shm_bytes, Some(64 << 20));
        assert_eq!(wanted.settings.sysctls["kernel.shm_rmid_forced"], "1");
        assert_eq!(wanted.cgroup, CgroupPath::parse("/kubepods/pod1/s").unwrap());
        assert_eq!(wanted.resolver.as_deref(), Some("nameserver 10.0.0.2\n"));
    }

    #[test]
    fn annotations_come_before() {
        let mut pod = pod();
        pod.annotations.insert("org.skep.shm-mib".into(), "128".into());
        pod.annotations.insert("org.skep.vcpus".into(), "1".into());
        let wanted = Wanted::read(&Config::default(), &request(&pod)).unwrap();
        assert_eq!((wanted.settings.shm_bytes, wanted.options.vcpus.get()), (Some(128 << 20), 1));
        pod.annotations.insert("org.skep.vcpus".into(), "many".into());
        let error = Wanted::read(&Config::default(), &request(&pod)).unwrap_err().to_string();
        assert!(error.contains("org.skep.vcpus"), "{error}");
    }

    #[test]
    fn the_hosts_namespaces_are_refused_by_name() {
        let mut pod = pod();
        let options = NamespaceOption { network: NamespaceMode::NODE.into(), ..NamespaceOption::default() };
        pod.linux.mut_or_insert_default().security_context = Some(LinuxSandboxSecurityContext {
            namespace_options: Some(options).into(),
            ..LinuxSandboxSecurityContext::default()
        })
        .into();
        let error = Wanted::read(&Config::default(), &request(&pod)).unwrap_err().to_string();
        assert!(error.contains("hostNetwork"), "{error}");
    }

    #[test]
    fn a_client_without_a_pod_gets_a_sandbox() {
        let request = CreateSandboxRequest { sandbox_id: "s".into(), ..CreateSandboxRequest::default() };
        let wanted = Wanted::read(&Config::default(), &request).unwrap();
        assert!(!wanted.is_pod());
        assert_eq!((wanted.settings, wanted.cgroup), (GuestSettings::default(), None));
    }
}
