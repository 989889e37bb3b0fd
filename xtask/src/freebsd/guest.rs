//! The directory of a FreeBSD guest: kernel, root and the manifest that says what they are.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use object::Endianness;
use object::elf::{DT_NEEDED, FileHeader64, PT_INTERP};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use skep::guest::{FileInfo, Files, GuestOs, Manifest, RootFile, RootInfo};

use super::Toolchain;
use crate::cache::{self, Cache};
use crate::{apt, command, elf, workspace};

/// What the kernel boots, in the guest's root (`init_path`).
const AGENT: &str = "skep-agent";
/// Where things are mounted.
const MOUNT_POINTS: [&str; 3] = ["dev", "run", "tmp"];
/// Where a FreeBSD has its libraries.
const LIBRARIES: [&str; 2] = ["lib", "usr/lib"];
/// What a kernel without these could not boot such a guest with: a word in it, and what brings it.
const WANTED: [(&[u8], &str); 3] =
    [(b"vtcon", "device virtio_console"), (b"p9fs", "device p9fs"), (b"virtio_p9fs", "device virtio_p9fs")];

/// What a guest is assembled from.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    /// The kernel, as `make buildkernel` leaves it.
    pub(crate) kernel: &'a Path,
    /// A directory with a FreeBSD's `lib` and `libexec`.
    pub(crate) base: &'a Path,
    /// The agent; cross-built if it is not given.
    pub(crate) agent: Option<&'a Path>,
    /// Where to put it.
    pub(crate) out: Option<&'a Path>,
}

/// Assembles the guest and returns its directory.
pub(crate) fn build(parts: &Parts<'_>, cache: &Cache) -> Result<PathBuf> {
    // What is given is looked at before anything is built.
    let kernel = read(parts.kernel)?;
    check_kernel(&kernel)?;
    let release = release(&kernel).context("the kernel does not say which FreeBSD it is of")?;
    let kernel = elf::pack(&kernel).context("not a kernel that is entered by PVH (options XENHVM)")?;
    let agent = match parts.agent {
        Some(agent) => agent.to_owned(),
        None => cross_build(cache)?,
    };
    let mut root = libraries(&agent, parts.base)?;
    root.insert(AGENT.to_owned(), agent);
    let out = match parts.out {
        Some(out) => std::path::absolute(out).context("cannot make the output's path absolute")?,
        None => workspace::target_dir().join("guest/freebsd"),
    };
    assemble(&kernel, release, &root, &out)?;
    Ok(out)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn check_kernel(kernel: &[u8]) -> Result<()> {
    for (word, option) in WANTED {
        ensure!(
            find(kernel, word).is_some(),
            "the kernel has no `{option}`: build one from packaging/guest/freebsd/SKEPGUEST"
        );
    }
    Ok(())
}

/// The release in the kernel's version: `@(#)FreeBSD 15.1-RELEASE #0 …`.
fn release(kernel: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"FreeBSD ";
    let mut rest = kernel;
    while let Some(at) = find(rest, BEFORE) {
        rest = &rest[at + BEFORE.len()..];
        let end = rest.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(rest.len());
        let word = std::str::from_utf8(&rest[..end]).unwrap_or_default();
        if word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('-') {
            return Some(word.to_owned());
        }
    }
    None
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}

/// The agent's binary for FreeBSD.
fn cross_build(cache: &Cache) -> Result<PathBuf> {
    apt::ensure(&[apt::COMPILER, apt::PYTHON], cache)?;
    let toolchain = Toolchain::make(cache)?;
    let mut cargo = toolchain.cargo("zigbuild");
    command::run(cargo.args(["--package", "skep-agent", "--profile", "agent"]))
        .context("the agent does not build")?;
    Ok(toolchain.target_dir().join(super::TARGET).join("agent/skep-agent"))
}

/// What a program is linked to, by its path in the root: its loader, its libraries and theirs.
fn libraries(program: &Path, base: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut wanted = vec![program.to_owned()];
    while let Some(path) = wanted.pop() {
        let Linked { interpreter, needed } =
            linked(&read(&path)?).with_context(|| path.display().to_string())?;
        for name in needed.iter().map(String::as_str).chain(interpreter.as_deref()) {
            // A loader by its path, libraries by their names.
            let places: Vec<String> = match name.strip_prefix('/') {
                Some(path) => vec![path.to_owned()],
                None => LIBRARIES.iter().map(|dir| format!("{dir}/{name}")).collect(),
            };
            let Some(place) = places.iter().find(|place| base.join(place).is_file()) else {
                bail!(
                    "{} has no {}, which {} needs",
                    base.display(),
                    places.join(" and no "),
                    path.display()
                );
            };
            // The loader looks into /lib and /usr/lib: one of them is enough.
            let file = Path::new(place).file_name().unwrap_or_default().to_string_lossy().into_owned();
            let to = if name.starts_with('/') { place.clone() } else { format!("lib/{file}") };
            if found.insert(to, base.join(place)).is_none() {
                wanted.push(base.join(place));
            }
        }
    }
    Ok(found)
}

/// What an ELF file names of others.
#[derive(Debug, PartialEq, Eq)]
struct Linked {
    interpreter: Option<String>,
    needed: Vec<String>,
}

fn linked(file: &[u8]) -> Result<Linked> {
    let header = FileHeader64::<Endianness>::parse(file).context("not a 64-bit ELF file")?;
    let endian = header.endian().context("of no byte order")?;
    let headers = header.program_headers(endian, file).context("no program headers")?;
    let mut linked = Linked { interpreter: None, needed: Vec::new() };
    for segment in headers {
        if segment.p_type(endian) == PT_INTERP {
            let data = segment.data(endian, file).ok().context("unreadable interpreter")?;
            let path = std::str::from_utf8(data).context("an interpreter that is no text")?;
            linked.interpreter = Some(path.trim_end_matches('\0').to_owned());
        }
    }
    let sections = header.sections(endian, file).context("unreadable sections")?;
    let Some((entries, strings)) = sections.dynamic(endian, file).context("unreadable dynamic section")?
    else {
        return Ok(linked);
    };
    let strings = sections.strings(endian, file, strings).context("no strings of the dynamic section")?;
    for entry in entries.iter().filter(|entry| entry.tag32(endian) == Some(DT_NEEDED)) {
        let name = entry.string(endian, strings).context("a needed library without a name")?;
        linked.needed.push(String::from_utf8_lossy(name).into_owned());
    }
    Ok(linked)
}

/// Puts everything into `out`. The manifest goes last: a directory that has one is whole.
fn assemble(kernel: &[u8], release: String, root: &BTreeMap<String, PathBuf>, out: &Path) -> Result<()> {
    let dir = out.join("root");
    let manifest = out.join("manifest.json");
    for old in [&manifest, &dir] {
        let gone = if old.is_dir() { std::fs::remove_dir_all(old) } else { std::fs::remove_file(old) };
        match gone {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", old.display()));
            }
            _ => {}
        }
    }
    for name in MOUNT_POINTS {
        std::fs::create_dir_all(dir.join(name)).with_context(|| format!("cannot create {name}"))?;
    }
    let mut files = Vec::new();
    for (path, from) in root {
        let to = dir.join(path);
        let parent = to.parent().unwrap_or(&dir);
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        std::fs::copy(from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o555))
            .with_context(|| format!("cannot change {}", to.display()))?;
        let size = std::fs::metadata(&to).with_context(|| to.display().to_string())?.len();
        files.push(RootFile { path: path.clone(), sha256: cache::sha256_file(&to)?, size });
    }
    let image = out.join("kernel");
    std::fs::write(&image, kernel).with_context(|| format!("cannot write {}", image.display()))?;
    let text = Manifest {
        format: Manifest::FORMAT,
        os: GuestOs::FreeBsd.name().to_owned(),
        arch: "x86_64".to_owned(),
        kernel_release: release,
        skep_version: skep::VERSION.to_owned(),
        // Agent and xtask have the workspace's version.
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_protocol: skep_protocol::PROTOCOL_VERSION,
        files: Files {
            kernel: FileInfo {
                name: "kernel".to_owned(),
                sha256: cache::sha256_file(&image)?,
                size: kernel.len() as u64,
            },
            initramfs: None,
            root: Some(RootInfo { name: "root".to_owned(), files }),
        },
        features: Vec::new(),
    };
    let mut json = serde_json::to_vec_pretty(&text).context("cannot write the manifest")?;
    json.push(b'\n');
    std::fs::write(&manifest, json).with_context(|| format!("cannot write {}", manifest.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_the_kernel() {
        let kernel = b"\0FreeBSD kernel\0@(#)FreeBSD 15.1-RELEASE-p1 SKEPGUEST\0";
        assert_eq!(release(kernel).as_deref(), Some("15.1-RELEASE-p1"));
        assert_eq!(release(b"FreeBSD of no number"), None);
    }

    #[test]
    fn a_kernel_without_what_a_guest_needs_is_refused() {
        check_kernel(b"..vtcon..virtio_p9fs..").unwrap();
        let error = check_kernel(b"..vtcon..p9fs..").unwrap_err().to_string();
        assert!(error.contains("device virtio_p9fs") && error.contains("SKEPGUEST"), "{error}");
    }

    #[test]
    fn what_a_program_needs_is_found() {
        // This program is one.
        let own = linked(&std::fs::read("/proc/self/exe").unwrap()).unwrap();
        assert!(own.interpreter.unwrap().starts_with("/lib64/ld-linux"));
        assert!(own.needed.iter().any(|name| name.starts_with("libc.so")), "{:?}", own.needed);
        assert!(linked(b"#!/bin/sh").is_err());
    }
}
