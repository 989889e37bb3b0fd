//! Files that containers of a pod share: their names for hosts, and where they ask for others.

use std::{
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use oci_spec::{
    OciSpecError,
    runtime::{Mount, MountBuilder, Spec},
};
use skep::network::GuestNetwork;
use skep_containerd_api::pod::DNSConfig;

/// What each file is in a container, and its name in the sandbox's directory.
const FILES: [(&str, &str); 3] =
    [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")];
/// The memory that containers of a pod share.
const SHM: &str = "/dev/shm";
/// Largest resolv.conf of the host that is copied.
const RESOLVER_LIMIT: u64 = 64 << 10;

/// The content of resolv.conf. Without instructions a pod asks whom the host asks.
pub(super) fn resolver(dns: Option<&DNSConfig>) -> String {
    let Some(dns) = dns else { return host_resolver() };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

fn host_resolver() -> String {
    use io::Read as _;
    let mut text = String::new();
    let read = fs::File::open("/etc/resolv.conf")
        .and_then(|file| file.take(RESOLVER_LIMIT).read_to_string(&mut text));
    if let Err(error) = read {
        tracing::warn!("/etc/resolv.conf: {error}");
    }
    text
}

/// What is written.
pub(super) struct Files<'a> {
    /// Host name.
    pub(super) hostname: &'a str,
    /// Content of resolv.conf.
    pub(super) resolver: &'a str,
    /// The pod's network.
    pub(super) network: Option<&'a GuestNetwork>,
}

impl Files<'_> {
    /// Writes all of them below `directory`.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        fs::write(directory.join("hosts"), self.hosts())?;
        fs::write(directory.join("hostname"), format!("{}\n", self.hostname))?;
        fs::write(directory.join("resolv.conf"), self.resolver)
    }

    /// The loopback's names, and the pod's own name for its addresses.
    fn hosts(&self) -> String {
        let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        let interfaces = self.network.iter().flat_map(|network| &network.interfaces);
        for address in interfaces.flat_map(|interface| &interface.addresses) {
            if let Some(ip) = ip(&address.ip) {
                let _ = writeln!(text, "{ip}\t{}", self.hostname);
            }
        }
        text
    }
}

/// An address by which others reach the pod.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    let ip = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
    (!ip.is_unicast_link_local()).then_some(ip.into())
}

/// Gives a container the pod's files and memory, except where its specification has something of its own.
pub(super) fn furnish(spec: &mut Spec, directory: &Path) -> Result<(), OciSpecError> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let access =
        if spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) { "ro" } else { "rw" };
    for (destination, name) in FILES {
        if !mounts.iter().any(|mount| mount.destination() == Path::new(destination)) {
            mounts.push(bind(&directory.join(name), destination, &["rbind", "rprivate", access])?);
        }
    }
    // The tmpfs that every specification has by default would be each container's own.
    mounts.retain(|mount| mount.destination() != Path::new(SHM) || mount.typ().as_deref() != Some("tmpfs"));
    if !mounts.iter().any(|mount| mount.destination() == Path::new(SHM)) {
        let device = mounts.iter().position(|mount| mount.destination() == Path::new("/dev"));
        let shm = bind(Path::new(SHM), SHM, &["rbind", "rw"])?;
        mounts.insert(device.map_or(0, |device| device + 1), shm);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ("bind")
        .source(source)
        .destination(destination)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_for_names_are_written_as_the_resolver_reads_them() {
        let dns = DNSConfig {
            servers: vec!["10.0.0.2".into(), "10.0.0.3".into()],
            searches: vec!["a.test".into(), "b.test".into()],
            options: vec!["ndots:5".into()],
            ..DNSConfig::default()
        };
        assert_eq!(
            resolver(Some(&dns)),
            "search a.test b.test\nnameserver 10.0.0.2\nnameserver 10.0.0.3\noptions ndots:5\n"
        );
        assert_eq!(resolver(Some(&DNSConfig::default())), "");
    }

    #[test]
    fn what_a_specification_has_of_its_own_stays() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.1.0",
            "root": { "path": "rootfs", "readonly": true },
            "mounts": [
                { "destination": "/dev", "type": "tmpfs" },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
                { "destination": "/etc/hosts", "type": "bind", "source": "/var/lib/kubelet/hosts" },
            ],
        }))
        .unwrap();
        let mut furnished = spec.clone();
        furnish(&mut furnished, Path::new("/s/etc")).unwrap();
        let mounts = furnished.mounts().clone().unwrap();
        let all: Vec<(&str, &str)> = mounts
            .iter()
            .map(|mount| {
                let source = mount.source().as_deref().and_then(Path::to_str).unwrap_or_default();
                (mount.destination().to_str().unwrap(), source)
            })
            .collect();
        assert_eq!(
            all,
            [
                ("/dev", ""),
                ("/dev/shm", "/dev/shm"),
                ("/etc/hosts", "/var/lib/kubelet/hosts"),
                ("/etc/hostname", "/s/etc/hostname"),
                ("/etc/resolv.conf", "/s/etc/resolv.conf"),
            ]
        );
        assert!(mounts[3].options().as_ref().unwrap().contains(&"ro".to_owned()));
    }

    #[test]
    fn hosts_knows_the_pods_own_name() {
        assert_eq!(ip(&[10, 0, 0, 7]).unwrap().to_string(), "10.0.0.7");
        assert_eq!(ip(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), None);
        assert_eq!(ip(&[1, 2, 3]), None);
        let files = Files { hostname: "web", resolver: "", network: None };
        assert!(files.hosts().starts_with("127.0.0.1\tlocalhost\n"));
    }
}
