//! `manifest.json` of a guest artefact.

use serde::{Deserialize, Serialize};

use super::GuestOs;

/// What a guest artefact says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's format: [`Manifest::FORMAT`].
    pub format: u32,
    /// "linux" or "freebsd".
    pub os: String,
    /// As in `uname -m`: `x86_64`.
    pub arch: String,
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// Release of Skep that it was built with.
    pub skep_version: String,
    /// Version of the agent in it.
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
    /// A cpio archive with the agent as `/init`: what a Linux guest has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<FileInfo>,
    /// A directory that is the guest's root, with the agent as `/skep-agent`: what a FreeBSD guest has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootInfo>,
}

/// The directory that is a guest's root.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RootInfo {
    /// Its name, in the manifest's directory.
    #[serde(deserialize_with = "plain_name")]
    pub name: String,
    /// The files in it, and no others.
    pub files: Vec<RootFile>,
}

/// A file of a guest's root.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RootFile {
    /// Where it is below the root, without a leading slash.
    #[serde(deserialize_with = "plain_path")]
    pub path: String,
    /// SHA-256 in lowercase hex.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
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
    if !is_plain(&name) {
        return Err(serde::de::Error::custom(format!("`{name}` is not a plain file name")));
    }
    Ok(name)
}

fn plain_path<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path = String::deserialize(deserializer)?;
    if !path.split('/').all(is_plain) {
        return Err(serde::de::Error::custom(format!("`{path}` is not a plain relative path")));
    }
    Ok(path)
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != ".." && name != "."
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
                files: Files { kernel: none(), initramfs: None, root: None },
                features: Vec::new(),
            });
        }
        serde_json::from_slice(text).map_err(told)
    }

    /// The first thing in which it does not fit this runtime and the system that is wanted: what, the guest's, what
    /// would fit.
    pub(super) fn mismatch(&self, os: GuestOs) -> Option<(&'static str, String, String)> {
        let protocol = skep_protocol::PROTOCOL_VERSION;
        let (has, wanted) = match os {
            GuestOs::Linux => (self.files.initramfs.is_some(), "an initramfs"),
            GuestOs::FreeBsd => (self.files.root.is_some(), "a root directory"),
        };
        let checks = [
            ("manifest format", self.format.to_string(), Self::FORMAT.to_string()),
            ("operating system", self.os.clone(), os.name().to_owned()),
            ("set of files", if has { wanted } else { "incomplete" }.to_owned(), wanted.to_owned()),
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
        assert_eq!(manifest.mismatch(GuestOs::Linux), None);
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
    fn a_freebsd_guest_has_a_root_and_no_initramfs() {
        let mut text = example();
        text["os"] = "freebsd".into();
        let manifest = Manifest::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(
            manifest.mismatch(GuestOs::FreeBsd).unwrap(),
            ("set of files", "incomplete".into(), "a root directory".into())
        );
        assert_eq!(manifest.mismatch(GuestOs::Linux).unwrap().0, "operating system");
        let file = |path: &str| serde_json::json!({"path": path, "sha256": "00", "size": 1});
        text["files"] = serde_json::json!({
            "kernel": {"name": "kernel", "sha256": "00", "size": 1},
            "root": {"name": "root", "files": [file("lib/libc.so.7")]},
        });
        let manifest = Manifest::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(manifest.mismatch(GuestOs::FreeBsd), None);
        assert_eq!(serde_json::to_value(&manifest).unwrap(), text);
        for bad in ["/etc", "lib/../../x", "", "a//b"] {
            text["files"]["root"]["files"][0] = file(bad);
            assert!(Manifest::parse(text.to_string().as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_format_is_told_whatever_else_it_has() {
        let manifest = Manifest::parse(br#"{"format": 7, "new": true, "skep_version": "9.0.0"}"#).unwrap();
        assert_eq!(manifest.mismatch(GuestOs::Linux).unwrap(), ("manifest format", "7".into(), "1".into()));
        assert_eq!(manifest.skep_version, "9.0.0");
    }
}
