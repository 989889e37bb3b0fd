//! The guest's directory: kernel, initramfs and the manifest that says what they are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use skep::guest::{FileInfo, Files, Manifest};

use crate::cache::{self, Cache};
use crate::progress::megabytes;
use crate::{initramfs, kconfig, kernel, workspace};

/// The architectures that guests are built for.
const ARCHES: &[&str] = &["x86_64"];
/// What a guest can do, each with the kernel option that gives it.
const FEATURES: &[(&str, &str)] = &[
    ("9p", "CONFIG_9P_FS"),
    ("block", "CONFIG_VIRTIO_BLK"),
    ("cgroup2", "CONFIG_CGROUPS"),
    ("console", "CONFIG_VIRTIO_CONSOLE"),
    ("ext4", "CONFIG_EXT4_FS"),
    ("fuse", "CONFIG_FUSE_FS"),
    ("ia32", "CONFIG_IA32_EMULATION"),
    ("net", "CONFIG_VIRTIO_NET"),
    ("nftables", "CONFIG_NF_TABLES"),
    ("overlay", "CONFIG_OVERLAY_FS"),
    ("pvh", "CONFIG_PVH"),
    ("seccomp", "CONFIG_SECCOMP_FILTER"),
    ("tun", "CONFIG_TUN"),
    ("userns", "CONFIG_USER_NS"),
    ("vsock", "CONFIG_VIRTIO_VSOCKETS"),
];

/// Largest kernel and initramfs, bytes: both are loaded into every microVM. docs/SPECIFICATION.md promises them.
const MOST_KERNEL: u64 = 8_000_000;
const MOST_INITRAMFS: u64 = 6_000_000;

/// The guest's directory for this machine's architecture, every part of it up to date.
pub(crate) fn build(arch: &str, out: Option<&Path>, cache: &Cache) -> Result<PathBuf> {
    ensure!(ARCHES.contains(&arch), "no guest can be built for '{arch}', only for: {}", ARCHES.join(", "));
    // The agent first: who changes it wants to hear of a mistake before a kernel is built.
    let agent = initramfs::agent(arch, cache)?;
    let initramfs = initramfs::build(&agent, cache)?;
    let kernel = kernel::build(arch, cache)?;
    let out = match out {
        Some(out) => std::path::absolute(out).context("cannot make the output's path absolute")?,
        None => workspace::target_dir().join("guest").join(arch),
    };
    assemble(arch, &kernel, &initramfs, &out)?;
    Ok(out)
}

/// Copies the parts into `out` and describes them. The manifest goes last and by rename: a directory that has one
/// is whole.
fn assemble(arch: &str, kernel: &kernel::Kernel, initramfs: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let config =
        std::fs::read_to_string(kernel.config()).context("cannot read the kernel's configuration")?;
    let manifest = Manifest {
        format: Manifest::FORMAT,
        os: "linux".to_owned(),
        arch: arch.to_owned(),
        kernel_release: kernel.release()?,
        skep_version: skep::VERSION.to_owned(),
        // Agent and xtask have the workspace's version.
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_protocol: skep_protocol::PROTOCOL_VERSION,
        files: Files {
            kernel: describe_file(&kernel.image())?,
            initramfs: Some(describe_file(initramfs)?),
            root: None,
        },
        features: features(&config)?,
    };
    within("kernel", &manifest.files.kernel, MOST_KERNEL)?;
    if let Some(initramfs) = &manifest.files.initramfs {
        within("initramfs, which is the agent,", initramfs, MOST_INITRAMFS)?;
    }
    let path = out.join("manifest.json");
    let mut json = serde_json::to_vec_pretty(&manifest).context("cannot write the manifest")?;
    json.push(b'\n');
    if std::fs::read(&path).is_ok_and(|before| before == json) {
        return Ok(());
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    for (from, name) in [(kernel.image(), kernel::IMAGE), (initramfs.to_owned(), initramfs::ARCHIVE)] {
        install(&from, &out.join(name))?;
    }
    let new = path.with_extension("json.new");
    std::fs::write(&new, &json).with_context(|| format!("cannot write {}", new.display()))?;
    std::fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
}

fn within(what: &str, file: &FileInfo, most: u64) -> Result<()> {
    let (size, most_mb) = (megabytes(file.size), megabytes(most));
    ensure!(file.size <= most, "the {what} has {size}, more than the {most_mb} of docs/SPECIFICATION.md");
    Ok(())
}

fn describe_file(path: &Path) -> Result<FileInfo> {
    let name = path.file_name().context("a path without a name")?.to_string_lossy().into_owned();
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    Ok(FileInfo { name, sha256: cache::sha256_file(path)?, size })
}

/// Puts a copy in place by rename: a VMM that has the old file open keeps it.
fn install(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new)
        .with_context(|| format!("cannot copy {} to {}", from.display(), new.display()))?;
    std::fs::rename(&new, to).with_context(|| format!("cannot write {}", to.display()))
}

fn features(config: &str) -> Result<Vec<String>> {
    let mut features = Vec::new();
    for (feature, option) in FEATURES {
        if kconfig::lost(&format!("{option}=y"), config)?.is_empty() {
            features.push((*feature).to_owned());
        }
    }
    Ok(features)
}

/// One line about each part, for the user.
pub(crate) fn describe(dir: &Path) -> Result<Vec<String>> {
    [kernel::IMAGE, initramfs::ARCHIVE]
        .into_iter()
        .map(|name| {
            let size =
                std::fs::metadata(dir.join(name)).with_context(|| format!("cannot read {name}"))?.len();
            Ok(format!("{name:<16} {}", megabytes(size)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_refused() {
        let file = |size| FileInfo { name: "kernel".to_owned(), sha256: String::new(), size };
        within("kernel", &file(MOST_KERNEL), MOST_KERNEL).unwrap();
        let error = within("kernel", &file(MOST_KERNEL + 10_000), MOST_KERNEL).unwrap_err().to_string();
        assert_eq!(error, "the kernel has 8.01 MB, more than the 8.00 MB of docs/SPECIFICATION.md");
    }

    #[test]
    fn features_follow_the_kernels_configuration() {
        let config = "CONFIG_9P_FS=y\n# CONFIG_TUN is not set\nCONFIG_PVH=y\n";
        assert_eq!(features(config).unwrap(), ["9p", "pvh"]);
    }
}
