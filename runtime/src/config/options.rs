//! What one pod chooses, by the annotations of its OCI spec.
//!
//! Whoever may run a pod may write its annotations, so they choose only among what the configuration allows: never a
//! path or a program of the host.

use std::collections::HashMap;

use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::{Deserialize, Serialize};

use crate::guest::GuestOs;

use super::{Config, Interfaces, Memory, RootfsMode, Vcpus};

/// Every annotation that is Skep's begins with this.
const PREFIX: &str = "org.skep.";

/// `org.skep.shm-mib`.
const SHM: &str = "shm-mib";
/// Most of it: far beyond any VM's memory, which is what bounds it.
const MOST_SHM_MIB: u64 = 1 << 30;

/// The networks of a nerdctl container: a JSON list of names, each of which becomes an interface.
const NERDCTL_NETWORKS: &str = "nerdctl/networks";
/// One that is none.
const NERDCTL_NONE: &str = "none";
/// What containerd's CRI plugin says of a pod's limits, which are the sums of its containers'.
const CRI_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CRI_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CRI_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// The configuration's choices with a pod's own laid over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PodOptions {
    /// Virtual CPUs: `org.skep.vcpus`.
    pub vcpus: Vcpus,
    /// Memory: `org.skep.memory-mib`.
    pub memory: Memory,
    /// Network devices where the network is made after the VM: `org.skep.interfaces`.
    pub interfaces: Interfaces,
    /// How roots of containers are made: `org.skep.rootfs`, "9p" or "overlay".
    pub rootfs: RootfsMode,
    /// The guest's system, where the specification alone does not tell the image's: `org.skep.os`, "linux" or
    /// "freebsd".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<GuestOs>,
}

/// What a container may use at most, by its own specification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnLimits {
    /// Processor time and the period in which it may be used, both microseconds.
    pub cpu: Option<(u64, u64)>,
    /// How many processors there have to be for those that it names: one more than the highest number.
    pub processors: Option<u64>,
    /// Memory, bytes.
    pub memory: Option<u64>,
}

/// What this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSize {
    /// Processors.
    pub processors: u64,
    /// Memory, MiB.
    pub memory_mib: u64,
}

/// An annotation that is Skep's but makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AnnotationError {
    /// No such annotation.
    #[error(
        "annotation {key}: unknown; known are org.skep.interfaces, org.skep.ips, org.skep.mac, org.skep.memory-mib, \
         org.skep.networks, org.skep.os, org.skep.ports, org.skep.rootfs, org.skep.shm-mib, org.skep.vcpus"
    )]
    Unknown {
        /// Its full name.
        key: String,
    },
    /// The value is not of its kind or out of range.
    #[error("annotation {key}: `{value}`: {reason}")]
    Value {
        /// Its full name.
        key: String,
        /// What it says.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More than the configuration lets a pod have.
    #[error(
        "annotation {key}: {value} is more than {limit}, the most that {limit_key} in the configuration allows"
    )]
    TooMuch {
        /// Its full name.
        key: String,
        /// What it asks for.
        value: String,
        /// What there is.
        limit: String,
        /// The configuration's key.
        limit_key: &'static str,
    },
}

impl PodOptions {
    /// What the configuration gives a pod that chooses nothing.
    pub fn defaults(config: &Config) -> Self {
        Self {
            vcpus: config.sandbox.vcpus,
            memory: config.sandbox.memory_mib,
            interfaces: config.sandbox.interfaces,
            rootfs: config.container.rootfs,
            os: None,
        }
    }

    /// Reads the annotations that are Skep's, and Kubernetes' of a pod's size; others are not looked at.
    ///
    /// A pod with a CPU limit gets as many virtual CPUs as that, rounded up. One with a memory limit gets it beside
    /// what a pod without one has (`sandbox.memory_mib`), which is for the guest's kernel and agent, for caches and for
    /// volumes in memory. Shares are relative weights and size nothing. Skep's own annotations come before these.
    pub fn from_annotations(
        config: &Config,
        annotations: &HashMap<String, String>,
    ) -> Result<Self, AnnotationError> {
        let mut options = Self::defaults(config);
        if let Some(count) = annotations.get(NERDCTL_NETWORKS).and_then(|value| nerdctl_networks(value)) {
            options.interfaces = count;
        }
        options.size_by_kubernetes(config, annotations)?;
        // In order, so that of two errors it is always the same one that is told.
        let mut own: Vec<_> = annotations.iter().filter(|(key, _)| key.starts_with(PREFIX)).collect();
        own.sort();
        for (key, value) in own {
            match &key[PREFIX.len()..] {
                "vcpus" => {
                    options.vcpus = number(key, value)?;
                    limit(key, &options.vcpus, &config.sandbox.max_vcpus, "sandbox.max_vcpus")?;
                }
                "memory-mib" => {
                    options.memory = number(key, value)?;
                    limit(key, &options.memory, &config.sandbox.max_memory_mib, "sandbox.max_memory_mib")?;
                }
                SHM => drop(shm(key, value)?),
                "interfaces" => options.interfaces = number(key, value)?,
                "os" => {
                    let word: StrDeserializer<'_, ValueError> = value.as_str().into_deserializer();
                    options.os = Some(GuestOs::deserialize(word).map_err(|e| wrong(key, value, &e))?);
                }
                "rootfs" => {
                    let word: StrDeserializer<'_, ValueError> = value.as_str().into_deserializer();
                    options.rootfs = RootfsMode::deserialize(word).map_err(|e| wrong(key, value, &e))?;
                }
                // Read where networks are chosen.
                "networks" | "ports" | "ips" | "mac" => {}
                _ => return Err(AnnotationError::Unknown { key: key.clone() }),
            }
        }
        Ok(options)
    }

    /// Makes room for the limits of a container whose pod nobody gave a size, by the rules that hold for a pod's: then
    /// the limit is what ends a process, and not the VM. A limit is no demand: of what is more than this host has, or
    /// than the configuration lets a pod have, there is as much as they have.
    pub fn make_room(
        &mut self,
        config: &Config,
        annotations: &HashMap<String, String>,
        limits: OwnLimits,
        host: HostSize,
    ) {
        let chosen = |keys: [&str; 2]| keys.iter().any(|key| annotations.contains_key(*key));
        let time = limits.cpu.map(|(quota, period)| quota.div_ceil(period.max(1)));
        if let Some(processors) = time.max(limits.processors)
            && !chosen(["org.skep.vcpus", CRI_QUOTA])
        {
            let most = host.processors.min(config.sandbox.max_vcpus.get().into());
            if let Ok(count) = Vcpus::try_from(processors.min(most)) {
                self.vcpus = self.vcpus.max(count);
            }
        }
        if let Some(bytes) = limits.memory
            && !chosen(["org.skep.memory-mib", CRI_MEMORY])
        {
            let most = host.memory_mib.min(config.sandbox.max_memory_mib.mib().into());
            let mib = bytes.div_ceil(1 << 20).saturating_add(config.sandbox.memory_mib.mib().into());
            if let Ok(memory) = Memory::try_from(mib.min(most)) {
                self.memory = self.memory.max(memory);
            }
        }
    }

    /// Size of the /dev/shm that the containers of a pod share, bytes, if an annotation says it: it is no property of the
    /// VM's.
    pub fn shm_bytes(annotations: &HashMap<String, String>) -> Result<Option<u64>, AnnotationError> {
        let key = format!("{PREFIX}{SHM}");
        annotations.get(&key).map(|value| shm(&key, value)).transpose()
    }

    fn size_by_kubernetes(
        &mut self,
        config: &Config,
        annotations: &HashMap<String, String>,
    ) -> Result<(), AnnotationError> {
        let positive = |key: &str| -> Result<Option<u64>, AnnotationError> {
            let Some(value) = annotations.get(key) else { return Ok(None) };
            let number: i64 = value.parse().map_err(|e| wrong(key, value, &e))?;
            // Nothing or less is no limit.
            Ok(u64::try_from(number).ok().filter(|number| *number > 0))
        };
        if let (Some(quota), Some(period)) = (positive(CRI_QUOTA)?, positive(CRI_PERIOD)?)
            && !annotations.contains_key("org.skep.vcpus")
        {
            let count = quota.div_ceil(period);
            self.vcpus = Vcpus::try_from(count).map_err(|e| wrong(CRI_QUOTA, &quota.to_string(), &e))?;
            limit(CRI_QUOTA, &self.vcpus, &config.sandbox.max_vcpus, "sandbox.max_vcpus")?;
        }
        if let Some(bytes) = positive(CRI_MEMORY)?
            && !annotations.contains_key("org.skep.memory-mib")
        {
            let mib = bytes.div_ceil(1 << 20).saturating_add(config.sandbox.memory_mib.mib().into());
            self.memory = Memory::try_from(mib).map_err(|e| wrong(CRI_MEMORY, &bytes.to_string(), &e))?;
            limit(CRI_MEMORY, &self.memory, &config.sandbox.max_memory_mib, "sandbox.max_memory_mib")?;
        }
        Ok(())
    }
}

fn shm(key: &str, value: &str) -> Result<u64, AnnotationError> {
    match value.parse::<u64>() {
        Ok(mib) if (1..=MOST_SHM_MIB).contains(&mib) => Ok(mib << 20),
        Ok(_) => Err(wrong(key, value, &format!("not 1 to {MOST_SHM_MIB}"))),
        Err(error) => Err(wrong(key, value, &error)),
    }
}

/// How many interfaces nerdctl will make. What it writes otherwise is its own business.
fn nerdctl_networks(value: &str) -> Option<Interfaces> {
    let names: Vec<String> = serde_json::from_str(value).ok()?;
    let count = names.iter().filter(|name| *name != NERDCTL_NONE).count();
    u64::try_from(count).ok()?.try_into().ok()
}

fn number<T: TryFrom<u64, Error = String>>(key: &str, value: &str) -> Result<T, AnnotationError> {
    let plain: u64 = value.parse().map_err(|e| wrong(key, value, &e))?;
    T::try_from(plain).map_err(|e| wrong(key, value, &e))
}

fn wrong(key: &str, value: &str, reason: &dyn std::fmt::Display) -> AnnotationError {
    AnnotationError::Value { key: key.to_owned(), value: value.to_owned(), reason: reason.to_string() }
}

fn limit<T: PartialOrd + std::fmt::Display>(
    key: &str,
    value: &T,
    limit: &T,
    limit_key: &'static str,
) -> Result<(), AnnotationError> {
    if value <= limit {
        return Ok(());
    }
    Err(AnnotationError::TooMuch {
        key: key.to_owned(),
        value: value.to_string(),
        limit: limit.to_string(),
        limit_key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<PodOptions, AnnotationError> {
        let config = Config::parse("[sandbox]\nmax_vcpus = 4\nmax_memory_mib = 512", "test").unwrap();
        let map = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        PodOptions::from_annotations(&config, &map)
    }

    #[test]
    fn a_pod_chooses_within_limits() {
        let options = read(&[
            ("org.skep.vcpus", "4"),
            ("org.skep.memory-mib", "512"),
            ("org.skep.rootfs", "overlay"),
            ("org.skep.os", "freebsd"),
            ("io.kubernetes.cri.container-type", "sandbox"),
        ])
        .unwrap();
        assert_eq!(options.vcpus.get(), 4);
        assert_eq!(options.memory.mib(), 512);
        assert_eq!(options.rootfs, RootfsMode::Overlay);
        assert_eq!(options.os, Some(GuestOs::FreeBsd));
        assert_eq!(read(&[]).unwrap(), PodOptions::defaults(&Config::default()));
    }

    #[test]
    fn shared_memory_is_counted_in_mib() {
        let of = |value: &str| {
            PodOptions::shm_bytes(&HashMap::from([("org.skep.shm-mib".to_owned(), value.to_owned())]))
        };
        assert_eq!(of("128").unwrap(), Some(128 << 20));
        assert_eq!(PodOptions::shm_bytes(&HashMap::new()).unwrap(), None);
        assert!(of("1G").unwrap_err().to_string().contains("`1G`"));
        read(&[("org.skep.shm-mib", "128")]).unwrap();
    }

    #[test]
    fn there_is_a_device_for_each_network_of_nerdctl() {
        let count = |pairs: &[(&str, &str)]| read(pairs).unwrap().interfaces.get();
        assert_eq!(count(&[]), 1);
        assert_eq!(count(&[("nerdctl/networks", "[\"none\"]")]), 0);
        assert_eq!(count(&[("nerdctl/networks", "[\"bridge\",\"db\"]")]), 2);
        assert_eq!(count(&[("nerdctl/networks", "of another form")]), 1);
        assert_eq!(count(&[("nerdctl/networks", "[\"bridge\",\"db\"]"), ("org.skep.interfaces", "3")]), 3);
    }

    #[test]
    fn a_pod_of_kubernetes_has_room_for_its_limits() {
        let size =
            |pairs: &[(&str, &str)]| read(pairs).map(|options| (options.vcpus.get(), options.memory.mib()));
        let default = PodOptions::defaults(&Config::default());
        let base = default.memory.mib();
        assert_eq!(size(&[(CRI_QUOTA, "150000"), (CRI_PERIOD, "100000")]).unwrap(), (2, base));
        assert_eq!(size(&[(CRI_QUOTA, "0"), (CRI_PERIOD, "100000"), (CRI_MEMORY, "0")]).unwrap(), (1, base));
        assert_eq!(size(&[(CRI_QUOTA, "-1"), (CRI_PERIOD, "100000")]).unwrap().0, 1);
        assert_eq!(size(&[(CRI_MEMORY, "100000001")]).unwrap(), (1, base + 96));
        // Skep's own say the last word.
        let own = [(CRI_MEMORY, "1000000000000"), ("org.skep.memory-mib", "100")];
        assert_eq!(size(&own).unwrap().1, 100);
        let refused = |pairs: &[(&str, &str)]| size(pairs).unwrap_err().to_string();
        assert!(refused(&[(CRI_MEMORY, "1000000000")]).contains("sandbox.max_memory_mib"));
        assert!(refused(&[(CRI_QUOTA, "900000"), (CRI_PERIOD, "100000")]).contains("sandbox.max_vcpus"));
        assert!(refused(&[(CRI_MEMORY, "1G")]).contains("`1G`"));
    }

    #[test]
    fn a_container_alone_has_room_for_its_limits() {
        let config = Config::parse("[sandbox]\nmax_vcpus = 4\nmax_memory_mib = 2048", "test").unwrap();
        let room = |pairs: &[(&str, &str)], cpu, memory, processors, memory_mib| {
            let map = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let mut options = PodOptions::from_annotations(&config, &map).unwrap();
            let limits = OwnLimits { cpu, memory, processors: None };
            options.make_room(&config, &map, limits, HostSize { processors, memory_mib });
            (options.vcpus.get(), options.memory.mib())
        };
        let base = PodOptions::defaults(&config).memory.mib();
        let gib = Some(1 << 30);
        assert_eq!(room(&[], None, None, 8, 8192), (1, base));
        assert_eq!(room(&[], Some((150_000, 100_000)), gib, 8, 8192), (2, base + 1024));
        assert_eq!(room(&[], Some((50_000, 100_000)), Some(1), 8, 8192), (1, base + 1));
        // Never more than there is, and never less than without a limit.
        assert_eq!(room(&[], Some((900_000, 100_000)), Some(u64::MAX), 8, 8192), (4, 2048));
        assert_eq!(room(&[], Some((900_000, 100_000)), gib, 2, 1000), (2, 1000));
        assert_eq!(room(&[], Some((1, 0)), gib, 0, 100), (1, base));
        // Who has said it has said it.
        let said = [("org.skep.vcpus", "3"), ("org.skep.memory-mib", "128")];
        assert_eq!(room(&said, Some((100_000, 100_000)), gib, 8, 8192), (3, 128));
        let said = [(CRI_QUOTA, "-1"), (CRI_PERIOD, "100000"), (CRI_MEMORY, "0")];
        assert_eq!(room(&said, Some((200_000, 100_000)), gib, 8, 8192), (1, base));
    }

    #[test]
    fn a_container_alone_has_the_processors_that_it_names() {
        let config = Config::parse("[sandbox]\nmax_vcpus = 4", "test").unwrap();
        let vcpus = |cpu, processors, host, pairs: &[(&str, &str)]| {
            let map = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let mut options = PodOptions::from_annotations(&config, &map).unwrap();
            let limits = OwnLimits { cpu, processors, memory: None };
            options.make_room(&config, &map, limits, HostSize { processors: host, memory_mib: 8192 });
            options.vcpus.get()
        };
        assert_eq!(vcpus(None, Some(2), 8, &[]), 2);
        assert_eq!(vcpus(Some((50_000, 100_000)), Some(3), 8, &[]), 3);
        assert_eq!(vcpus(Some((400_000, 100_000)), Some(2), 8, &[]), 4);
        assert_eq!((vcpus(None, Some(8), 8, &[]), vcpus(None, Some(8), 2, &[])), (4, 2));
        assert_eq!(vcpus(None, Some(2), 8, &[("org.skep.vcpus", "1")]), 1);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let text = |pairs: &[(&str, &str)]| read(pairs).unwrap_err().to_string();
        assert!(text(&[("org.skep.vcpu", "1")]).contains("org.skep.vcpu: unknown"));
        assert!(text(&[("org.skep.vcpus", "two")]).contains("org.skep.vcpus: `two`"));
        assert!(text(&[("org.skep.vcpus", "5")]).contains("sandbox.max_vcpus"));
        assert!(text(&[("org.skep.vcpus", "-1")]).contains("`-1`"));
        assert!(text(&[("org.skep.memory-mib", "1024")]).contains("sandbox.max_memory_mib"));
        assert!(text(&[("org.skep.memory-mib", "0")]).contains("64 to"));
        assert!(text(&[("org.skep.shm-mib", "0")]).contains("org.skep.shm-mib: `0`"));
        assert!(text(&[("org.skep.rootfs", "block")]).contains("`9p`"));
        assert!(text(&[("org.skep.os", "plan9")]).contains("`freebsd`"));
        // The prefix alone is not a way around.
        assert!(text(&[("org.skep.", "1")]).contains("unknown"));
    }
}
