//! `manifest.json` of a guest artefact.

use serde::{Deserialize, Serialize};

/// What a guest artefact says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's format: [`Manifest::FORMAT`].
    pub format: u32,
    /// "linux".
    pub os: String,
    /// As in `uname -m`: `x86_64`.
    pub arch: String,
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// Release of Skep that it was built with.
    pub skep_version: String,
    /// Version of the agent in the initramfs.
    pub agent_version: String,
    /// [`skep_protocol::PROTOCOL_VERSION`] of that agent.
    pub agent_protocol: u32,
    /// The files.
    pub files: Files,
    /// What the kernel can do, by names such as "9p" or "vsock".
    #[serde(default)]
    pub features: Vec<String>,
}

/// The files of an artefact.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// An ELF kernel with a PVH entry.
    pub kernel: FileInfo,
    /// A cpio archive with the agent as `/init`.
    pub initramfs: FileInfo,
}

/// A file of an artefact.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileInfo {
    /// File name, in the manifest's directory.
    #[serde(deserialize_with = "plain_name")]
    pub name: String,
    /// SHA-256 in lowercase hex.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

fn plain_name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.is_empty() || name.contains('/') || name == ".." || name == "." {
        return Err(serde::de::Error::custom(format!("`{name}` is not a plain file name")));
    }
    Ok(name)
}

/// What every format has, so that another one is told from a broken file.
#[derive(Deserialize)]
struct Head {
    format: u32,
    #[serde(default)]
    skep_version: String,
}

impl Manifest {
    /// The format that this runtime reads and writes.
    pub const FORMAT: u32 = 1;

    /// Reads a manifest. Of another format only the format and the release are read. An error is a line and a text.
    pub(super) fn parse(text: &[u8]) -> Result<Self, (usize, String)> {
        let told = |e: serde_json::Error| (e.line().max(1), e.to_string());
        let head: Head = serde_json::from_slice(text).map_err(told)?;
        if head.format != Self::FORMAT {
            let none = || FileInfo { name: String::new(), sha256: String::new(), size: 0 };
            return Ok(Self {
                format: head.format,
                os: String::new(),
                arch: String::new(),
                kernel_release: String::new(),
                skep_version: head.skep_version,
                agent_version: String::new(),
                agent_protocol: 0,
                files: Files { kernel: none(), initramfs: none() },
                features: Vec::new(),
            });
        }
        serde_json::from_slice(text).map_err(told)
    }

    /// The first thing in which it does not fit this runtime: what, the guest's, this runtime's.
    pub(super) fn mismatch(&self) -> Option<(&'static str, String, String)> {
        let protocol = skep_protocol::PROTOCOL_VERSION;
        let checks = [
            ("manifest format", self.format.to_string(), Self::FORMAT.to_string()),
            ("operating system", self.os.clone(), "linux".to_owned()),
            ("architecture", self.arch.clone(), std::env::consts::ARCH.to_owned()),
            ("agent protocol", self.agent_protocol.to_string(), protocol.to_string()),
        ];
        checks.into_iter().find(|(_, guest, host)| guest != host)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> serde_json::Value {
        serde_json::json!({
            "format": 1, "os": "linux", "arch": std::env::consts::ARCH, "kernel_release": "6.12.1",
            "skep_version": "0.1.0", "agent_version": "0.1.0",
            "agent_protocol": skep_protocol::PROTOCOL_VERSION,
            "files": {
                "kernel": {"name": "vmlinux", "sha256": "00", "size": 1},
                "initramfs": {"name": "initramfs.cpio", "sha256": "00", "size": 1},
            },
            "features": ["9p"],
        })
    }

    #[test]
    fn a_manifest_is_what_it_was_written_as() {
        let manifest = Manifest::parse(example().to_string().as_bytes()).unwrap();
        assert_eq!(manifest.mismatch(), None);
        assert_eq!(serde_json::to_value(&manifest).unwrap(), example());
    }

    #[test]
    fn unknown_and_missing_fields_are_named() {
        let mut text = example();
        text["files"]["modules"] = 1.into();
        let (_, message) = Manifest::parse(text.to_string().as_bytes()).unwrap_err();
        assert!(message.contains("unknown field `modules`"), "{message}");
        let (line, message) = Manifest::parse(b"{\n\"format\": 1\n}").unwrap_err();
        assert!(line == 3 && message.contains("missing field"), "{line}: {message}");
    }

    #[test]
    fn another_format_is_told_whatever_else_it_has() {
        let manifest = Manifest::parse(br#"{"format": 7, "new": true, "skep_version": "9.0.0"}"#).unwrap();
        assert_eq!(manifest.mismatch().unwrap(), ("manifest format", "7".into(), "1".into()));
        assert_eq!(manifest.skep_version, "9.0.0");
    }
}
