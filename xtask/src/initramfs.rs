//! The guest's initramfs: the agent as `/init` and what the kernel needs to start it, nothing more.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use cpio::newc;

use crate::cache::{self, Cache};
use crate::progress::{Step, megabytes};
use crate::{apt, command, workspace};

/// The name of the archive in the cache and in the artefact.
pub(crate) const ARCHIVE: &str = "initramfs.cpio";
/// Raised when the archive's shape changes.
const RECIPE: u32 = 1;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Builds the agent: one static binary for the guest's architecture.
///
/// It has a target directory of its own: its flags differ from the host's, and cargo would rebuild everything at
/// each change between them.
pub(crate) fn agent(arch: &str, cache: &Cache) -> Result<PathBuf> {
    apt::ensure(&[apt::COMPILER, apt::AGENT], cache)?;
    let target = format!("{arch}-unknown-linux-gnu");
    let target_dir = workspace::target_dir().join("guest");
    let mut step = Step::start("building the agent");
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "skep-agent", "--profile", "agent", "--locked", "--target", &target]);
    cargo.arg("--target-dir").arg(&target_dir);
    // A static, non-relocatable executable: the guest has no libraries, and nothing is gained by moving PID 1.
    cargo.arg("--config").arg(format!(
        "target.{target}.rustflags = ['-Ctarget-feature=+crt-static', '-Crelocation-model=static']"
    ));
    cargo
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", format!("/usr/lib/{arch}-linux-gnu"));
    // These would take precedence over the flags above.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    cargo.env_remove("CARGO_BUILD_RUSTFLAGS");
    command::run_logged(&mut cargo, &cache.log("agent")?, &mut step)?;
    let binary = target_dir.join(target).join("agent/skep-agent");
    let size = std::fs::metadata(&binary).with_context(|| format!("cannot read {}", binary.display()))?.len();
    step.done(&megabytes(size));
    Ok(binary)
}

/// The archive with the agent in it, from the cache or written now.
pub(crate) fn build(agent: &std::path::Path, cache: &Cache) -> Result<PathBuf> {
    let inputs = format!("recipe {RECIPE}\nagent {}\n", cache::sha256_file(agent)?);
    let dir = cache.get_or_build("initramfs", &inputs, |dir| {
        let agent = std::fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
        std::fs::write(dir.join(ARCHIVE), archive(&agent)?).context("cannot write the initramfs")
    })?;
    Ok(dir.join(ARCHIVE))
}

/// `/init` and the nodes that the kernel looks for before `/init` runs: `/dev/console` for its standard streams.
fn archive(agent: &[u8]) -> Result<Vec<u8>> {
    ensure!(agent.starts_with(b"\x7fELF"), "the agent is not an ELF executable");
    let mut out = Vec::with_capacity(agent.len() + 4096);
    entry(&mut out, 1, "dev", DIRECTORY | 0o755, None, &[])?;
    entry(&mut out, 2, "dev/console", CHARACTER_DEVICE | 0o600, Some((5, 1)), &[])?;
    entry(&mut out, 3, "init", REGULAR | 0o755, None, agent)?;
    newc::trailer(&mut out).context("cannot end the initramfs")?;
    Ok(out)
}

fn entry(
    out: &mut Vec<u8>,
    inode: u32,
    name: &str,
    mode: u32,
    device: Option<(u32, u32)>,
    content: &[u8],
) -> Result<()> {
    let (major, minor) = device.unwrap_or_default();
    let size = u32::try_from(content.len()).with_context(|| format!("{name} is too big for an initramfs"))?;
    let builder = newc::Builder::new(name)
        .ino(inode)
        .mode(mode)
        .nlink(if mode & DIRECTORY == DIRECTORY { 2 } else { 1 })
        .rdev_major(major)
        .rdev_minor(minor);
    let mut writer = builder.write(out, size);
    writer.write_all(content).with_context(|| format!("cannot write {name} to the initramfs"))?;
    writer.finish().with_context(|| format!("cannot write {name} to the initramfs"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_agent_and_a_console() {
        let bytes = archive(b"\x7fELF and so on").unwrap();
        let mut rest = bytes.as_slice();
        let mut entries = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let device = (reader.entry().rdev_major(), reader.entry().rdev_minor());
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
            entries.push((name, mode, device, content));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            entries,
            [
                ("dev".to_owned(), 0o040_755, (0, 0), vec![]),
                ("dev/console".to_owned(), 0o020_600, (5, 1), vec![]),
                ("init".to_owned(), 0o100_755, (0, 0), b"\x7fELF and so on".to_vec()),
            ]
        );
    }

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        assert_eq!(archive(b"\x7fELF").unwrap(), archive(b"\x7fELF").unwrap());
        assert!(archive(b"#!/bin/sh").is_err());
    }
}
