//! The `freebsd` section of a specification (OCI runtime specification 1.3, config-freebsd.md), and which system a
//! specification is for.

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::SpecError;
use super::mounts::{kind, linux_emulation};
use crate::guest::GuestOs;

/// The section.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FreeBsd {
    /// Devices beside those of the mounted devfs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Parameters of the jail.
    #[serde(default)]
    pub jail: Jail,
}

/// A device to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Below `/dev`.
    pub path: String,
    /// Its mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// Parameters of a jail, jail(8).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Jail {
    /// The jail in which this is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Host name and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Sharing>,
    /// IPv4 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip4: Option<Sharing>,
    /// IPv6 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Sharing>,
    /// The network stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnet: Option<Sharing>,
    /// System V messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysvmsg: Option<Sharing>,
    /// System V semaphores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysvsem: Option<Sharing>,
    /// System V shared memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysvshm: Option<Sharing>,
    /// Which mounts show, 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforce_statfs: Option<u8>,
    /// What it may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Allow>,
}

/// With whom a jail shares something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// With nobody: it has its own.
    New,
    /// With what it is in.
    Inherit,
    /// It has none.
    Disable,
}

/// What a jail may: `allow.*`. What is left out is as the specification says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "independent permissions")]
pub struct Allow {
    /// Change its host name.
    pub set_hostname: bool,
    /// Use raw sockets.
    pub raw_sockets: bool,
    /// Change file flags.
    pub chflags: bool,
    /// Mount these file systems.
    pub mount: Vec<String>,
    /// Change quotas.
    pub quotas: bool,
    /// Use socket families beside IP and unix.
    pub socket_af: bool,
    /// Bind ports below 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_ports: Option<bool>,
    /// Have a super-user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suser: Option<bool>,
}

/// Devices that every container of a FreeBSD guest sees (the agent's ruleset).
const GUEST_DEVICES: [&str; 10] =
    ["null", "zero", "full", "random", "urandom", "crypto", "stdin", "stdout", "stderr", "ptmx"];

/// Whose images a specification runs, as far as it tells.
///
/// containerd writes a `linux` section for FreeBSD images, too (`pkg/oci/spec.go`): on FreeBSD the mounts tell them
/// apart, since Linux images get linprocfs and linsysfs there.
pub fn guest_os(spec: &Spec, freebsd: Option<&FreeBsd>) -> GuestOs {
    if freebsd.is_some() {
        return GuestOs::FreeBsd;
    }
    let other = spec.windows().is_some() || spec.solaris().is_some() || spec.zos().is_some();
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let of_jails = mounts.iter().any(|mount| kind(mount) == "devfs") && !mounts.iter().any(linux_emulation);
    if of_jails || (spec.linux().is_none() && !other) { GuestOs::FreeBsd } else { GuestOs::Linux }
}

/// Refuses what a jail in a guest of its own cannot have.
pub(super) fn check(freebsd: &FreeBsd) -> Result<(), SpecError> {
    for (index, device) in freebsd.devices.iter().enumerate() {
        if !GUEST_DEVICES.contains(&device.path.as_str()) {
            return Err(SpecError::unsupported(
                format!("freebsd.devices[{index}]"),
                format!("{} is a device of the host: a microVM can't have it", device.path),
            ));
        }
    }
    let jail = &freebsd.jail;
    if let Some(parent) = &jail.parent {
        return Err(SpecError::unsupported(
            "freebsd.jail.parent",
            format!("{parent} is a jail of the host: containers share a microVM by the pod they are in"),
        ));
    }
    for (field, sharing) in [("host", jail.host), ("vnet", jail.vnet)] {
        if sharing == Some(Sharing::Disable) {
            let reason = "\"disable\" is neither \"new\" nor \"inherit\"";
            return Err(SpecError::invalid(format!("freebsd.jail.{field}"), reason));
        }
    }
    if let Some(level) = jail.enforce_statfs.filter(|level| *level > 2) {
        return Err(SpecError::invalid("freebsd.jail.enforceStatfs", format!("{level} is not 0 to 2")));
    }
    for (index, name) in jail.allow.iter().flat_map(|allow| &allow.mount).enumerate() {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(SpecError::invalid(
                format!("freebsd.jail.allow.mount[{index}]"),
                format!("{name:?} is no name of a file system"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn os(value: serde_json::Value) -> GuestOs {
        let freebsd: Option<FreeBsd> =
            value.get("freebsd").cloned().map(|section| serde_json::from_value(section).unwrap());
        guest_os(&serde_json::from_value(value).unwrap(), freebsd.as_ref())
    }

    #[test]
    fn the_system_is_that_of_the_image() {
        let mount = |kind: &str, at: &str| json!({"destination": at, "type": kind, "source": kind});
        let version = "1.3.0";
        // As containerd on FreeBSD writes them, for an image of each.
        let jails = json!([mount("devfs", "/dev"), mount("fdescfs", "/dev/fd")]);
        let emulated =
            json!([mount("linprocfs", "/proc"), mount("linsysfs", "/sys"), mount("devfs", "/dev")]);
        assert_eq!(os(json!({"ociVersion": version, "linux": {}, "mounts": jails})), GuestOs::FreeBsd);
        assert_eq!(os(json!({"ociVersion": version, "linux": {}, "mounts": emulated})), GuestOs::Linux);
        assert_eq!(
            os(json!({"ociVersion": version, "linux": {}, "mounts": [mount("proc", "/proc")]})),
            GuestOs::Linux
        );
        assert_eq!(os(json!({"ociVersion": version, "linux": {}, "freebsd": {}})), GuestOs::FreeBsd);
        assert_eq!(os(json!({"ociVersion": version})), GuestOs::FreeBsd);
        assert_eq!(os(json!({"ociVersion": version, "windows": {"layerFolders": []}})), GuestOs::Linux);
    }

    #[test]
    fn what_a_guests_jail_cannot_have_is_named() {
        let refusal = |section: serde_json::Value| {
            check(&serde_json::from_value(section).unwrap()).unwrap_err().to_string()
        };
        assert!(
            refusal(json!({"devices": [{"path": "pf", "mode": 448}]})).contains("freebsd.devices[0]: pf")
        );
        assert!(refusal(json!({"jail": {"parent": "web"}})).contains("freebsd.jail.parent: web"));
        assert!(refusal(json!({"jail": {"vnet": "disable"}})).contains("freebsd.jail.vnet"));
        assert!(refusal(json!({"jail": {"enforceStatfs": 3}})).contains("3 is not 0 to 2"));
        assert!(refusal(json!({"jail": {"allow": {"mount": ["a.b"]}}})).contains("allow.mount[0]"));
        check(
            &serde_json::from_value(json!({
                "devices": [{"path": "null"}],
                "jail": {"host": "new", "vnet": "new", "ip4": "disable", "enforceStatfs": 1,
                         "allow": {"rawSockets": true, "mount": ["tmpfs"]}},
                "somethingNew": 1
            }))
            .unwrap(),
        )
        .unwrap();
    }
}
