//! Mounts sorted by who makes them: the guest's kernel, the host's file systems, or nobody.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::{Mount, MountBuilder};

use super::{Context, SpecError};

/// What a source of a bind mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A unix socket.
    Socket,
    /// A FIFO.
    Fifo,
    /// A device node.
    Device,
}

/// Answers what a path is and where it leads, following symbolic links.
pub type Probe<'a> = dyn Fn(&Path) -> io::Result<(PathBuf, SourceKind)> + 'a;

/// A directory or file of the host that the guest has to see.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent properties of a mount")]
pub struct Volume {
    /// Where it is, with symbolic links resolved.
    pub source: PathBuf,
    /// Whether it is a directory or else a regular file.
    pub directory: bool,
    /// Whether the guest may only read it.
    pub readonly: bool,
    /// Whether file systems mounted below the source belong to it.
    pub recursive: bool,
    /// Whether file systems that the host mounts below the source later are to appear.
    pub follows_host: bool,
    /// Its name below the container's share directory.
    pub name: String,
}

/// File systems that the guest's kernel makes.
const GUEST_MADE: [&str; 8] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "securityfs"];
/// File systems of FreeBSD that containerd asks for there even when the image is a Linux one.
const FREEBSD: [&str; 4] = ["devfs", "linprocfs", "linsysfs", "fdescfs"];
/// Where the guest has the memory that all containers of a sandbox share.
const GUEST_SHM: &str = "/dev/shm";
/// Interfaces of the host's kernel: a guest has its own.
const KERNEL_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

pub(super) fn rewrite(
    mounts: Vec<Mount>,
    context: &Context<'_>,
    probe: &Probe<'_>,
    notes: &mut Vec<String>,
) -> Result<(Vec<Mount>, Vec<Volume>), SpecError> {
    let freebsd = mounts.iter().any(|mount| FREEBSD.contains(&kind(mount)));
    let mut kept = Vec::new();
    let mut volumes = Vec::new();
    for (index, mut mount) in mounts.into_iter().enumerate() {
        let field = format!("mounts[{index}]");
        check_destination(&mount, &field)?;
        match kind(&mount) {
            "fdescfs" => {} // The guest's kernel has /dev/fd without it.
            "devfs" => kept.push(linux_dev(mount.destination())?),
            "linprocfs" => {
                kept.push(made("proc", "proc", mount.destination(), &["nosuid", "noexec", "nodev"])?);
            }
            "linsysfs" => {
                kept.push(made("sysfs", "sysfs", mount.destination(), &["nosuid", "noexec", "nodev", "ro"])?);
            }
            "tmpfs" if freebsd => {
                let options = linux_tmpfs_options(&mount, &field, notes);
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                kept.push(made("tmpfs", "tmpfs", mount.destination(), &options)?);
            }
            _ if is_bind(&mount) && mount.destination() == Path::new(GUEST_SHM) => {
                // The caller made it on the host for all of a pod; the guest has one that its containers share.
                notes.push(format!("{field}: /dev/shm is the guest's"));
                kept.push(made(
                    "bind",
                    GUEST_SHM,
                    Path::new(GUEST_SHM),
                    &["rbind", "nosuid", "noexec", "nodev"],
                )?);
            }
            _ if is_bind(&mount) => {
                let volume = volume(&mount, &field, volumes.len(), context, probe)?;
                mount.set_source(Some(format!("{}/{}", context.guest_dir, volume.name).into()));
                mount.set_typ(Some("bind".into()));
                mount.set_options(Some(guest_bind_options(&mount)));
                volumes.push(volume);
                kept.push(mount);
            }
            kind if GUEST_MADE.contains(&kind) => kept.push(mount),
            kind => return Err(unknown(field, mount.destination(), kind)),
        }
    }
    if freebsd {
        complete_linux_set(&mut kept)?;
    }
    Ok((kept, volumes))
}

/// A file system that nobody mounts for a container.
pub(super) fn unknown(field: String, destination: &Path, kind: &str) -> SpecError {
    SpecError::unsupported(
        field,
        format!(
            "{}: mounting a file system of type {kind:?} in a microVM is not supported: mount it on the host and bind it",
            destination.display()
        ),
    )
}

/// Whether it is one of those with which FreeBSD shows itself as Linux.
pub(super) fn linux_emulation(mount: &Mount) -> bool {
    matches!(kind(mount), "linprocfs" | "linsysfs")
}

/// Its file system.
pub(super) fn kind(mount: &Mount) -> &str {
    mount.typ().as_deref().unwrap_or_default()
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// The OCI specification names a bind mount by its options, and lets the type be anything then; FreeBSD's is nullfs.
pub(super) fn is_bind(mount: &Mount) -> bool {
    matches!(kind(mount), "bind" | "rbind" | "nullfs") || options(mount).any(|o| o == "bind" || o == "rbind")
}

pub(super) fn check_destination(mount: &Mount, field: &str) -> Result<(), SpecError> {
    let destination = mount.destination();
    if destination.as_os_str().is_empty() || destination.components().any(|part| part == Component::ParentDir)
    {
        return Err(SpecError::invalid(
            format!("{field}.destination"),
            format!("`{}` is not a path below the container's root", destination.display()),
        ));
    }
    Ok(())
}

/// The last of two contradicting options counts, as with mount(8).
fn last_of<'a>(mount: &'a Mount, names: &[&str]) -> Option<&'a str> {
    options(mount).filter(|option| names.contains(option)).last()
}

/// What has to be shared for a bind mount.
pub(super) fn volume(
    mount: &Mount,
    field: &str,
    number: usize,
    context: &Context<'_>,
    probe: &Probe<'_>,
) -> Result<Volume, SpecError> {
    let given = mount
        .source()
        .as_ref()
        .filter(|source| !source.as_os_str().is_empty())
        .ok_or_else(|| SpecError::invalid(format!("{field}.source"), "missing"))?;
    let destination = mount.destination().display();
    let (source, kind) = probe(&context.bundle.join(given)).map_err(|error| {
        SpecError::invalid(
            format!("{field}.source"),
            format!("{} for {destination}: {error}", given.display()),
        )
    })?;
    let refuse = |reason: &str| {
        Err(SpecError::unsupported(
            format!("{field}.source"),
            format!("{} for {destination}: {reason}", given.display()),
        ))
    };
    match kind {
        SourceKind::Directory | SourceKind::File => {}
        SourceKind::Socket => return refuse("a socket of the host can't be reached from a microVM"),
        SourceKind::Fifo => return refuse("a FIFO of the host can't be reached from a microVM"),
        SourceKind::Device => return refuse("a device of the host can't be used in a microVM"),
    }
    if KERNEL_TREES.iter().any(|tree| source.starts_with(tree)) && !source.starts_with("/dev/shm") {
        return refuse("this is an interface of the host's kernel, and the guest has its own");
    }
    if mount.uid_mappings().is_some() || last_of(mount, &["idmap", "ridmap"]).is_some() {
        return Err(SpecError::unsupported(
            format!("{field}.options"),
            format!("id-mapped mounts ({destination}) are not supported yet"),
        ));
    }
    if let Some(option) = last_of(mount, &["shared", "rshared"]) {
        return Err(SpecError::unsupported(
            format!("{field}.options"),
            format!("{option} ({destination}): what a microVM mounts can't appear on the host"),
        ));
    }
    Ok(Volume {
        source,
        directory: kind == SourceKind::Directory,
        readonly: matches!(last_of(mount, &["ro", "rw", "rro"]), Some("ro" | "rro")),
        recursive: last_of(mount, &["bind", "rbind"]) != Some("bind"),
        follows_host: last_of(mount, &["slave", "rslave", "private", "rprivate"])
            .is_some_and(|o| o.ends_with("slave")),
        name: format!("mounts/{number}"),
    })
}

/// A file of the host at `destination` in the container.
pub(super) fn file(
    source: &Path,
    destination: &str,
    number: usize,
    context: &Context<'_>,
) -> Result<(Mount, Volume), SpecError> {
    let name = format!("mounts/{number}");
    let at = format!("{}/{name}", context.guest_dir);
    let mount =
        made("bind", &at, Path::new(destination), &["rbind", "rprivate", "nosuid", "nodev", "noexec"])?;
    let volume = Volume {
        source: source.to_owned(),
        directory: false,
        readonly: false,
        recursive: false,
        follows_host: false,
        name,
    };
    Ok((mount, volume))
}

/// Options for the guest's own bind mount. The host's file systems arrive there as one tree, so recursion and
/// propagation were settled on the host.
fn guest_bind_options(mount: &Mount) -> Vec<String> {
    const SETTLED: [&str; 10] = [
        "bind",
        "rbind",
        "slave",
        "rslave",
        "private",
        "rprivate",
        "unbindable",
        "runbindable",
        "shared",
        "rshared",
    ];
    let mut kept: Vec<String> = vec!["rbind".into(), "rprivate".into()];
    kept.extend(options(mount).filter(|option| !SETTLED.contains(option)).map(str::to_owned));
    kept
}

/// A mount of the guest's own.
pub(super) fn made(
    typ: &str,
    source: &str,
    destination: &Path,
    options: &[&str],
) -> Result<Mount, SpecError> {
    MountBuilder::default()
        .typ(typ)
        .source(source)
        .destination(destination)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .map_err(|error| SpecError::invalid("mounts", error.to_string()))
}

/// FreeBSD's options of tmpfs (tmpfs(4), mount(8)) as Linux has them. What it has not is left out and noted.
fn linux_tmpfs_options(mount: &Mount, field: &str, notes: &mut Vec<String>) -> Vec<String> {
    let mut translated = vec!["nosuid".to_owned(), "nodev".to_owned()];
    for option in options(mount) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            // Both take the units k, m, g, t and p.
            "size" | "mode" | "uid" | "gid" => translated.push(option.to_owned()),
            "inodes" => translated.push(format!("nr_inodes={value}")),
            "ro" | "noexec" | "noatime" | "nosymfollow" => translated.push(name.to_owned()),
            "" | "rw" | "nosuid" | "nodev" => {}
            _ => notes.push(format!("{field}: tmpfs option {option} is FreeBSD's alone, left out")),
        }
    }
    translated
}

fn linux_dev(destination: &Path) -> Result<Mount, SpecError> {
    made("tmpfs", "tmpfs", destination, &["nosuid", "strictatime", "mode=755", "size=65536k"])
}

fn shm() -> Result<Mount, SpecError> {
    made("tmpfs", "shm", Path::new("/dev/shm"), &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])
}

/// A specification made on FreeBSD lacks what the OCI specification promises Linux programs (and what containerd
/// gives them on Linux).
fn complete_linux_set(mounts: &mut Vec<Mount>) -> Result<(), SpecError> {
    let wanted = [
        made("proc", "proc", Path::new("/proc"), &["nosuid", "noexec", "nodev"])?,
        linux_dev(Path::new("/dev"))?,
        made(
            "devpts",
            "devpts",
            Path::new("/dev/pts"),
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        shm()?,
        made("mqueue", "mqueue", Path::new("/dev/mqueue"), &["nosuid", "noexec", "nodev"])?,
        made("sysfs", "sysfs", Path::new("/sys"), &["nosuid", "noexec", "nodev", "ro"])?,
        made("tmpfs", "tmpfs", Path::new("/run"), &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
    ];
    // Parents first, and all of them before what the caller mounts inside.
    let mut made = Vec::new();
    for default in wanted {
        match mounts.iter().position(|mount| mount.destination() == default.destination()) {
            Some(index) => made.push(mounts.remove(index)),
            None => made.push(default),
        }
    }
    made.append(mounts);
    *mounts = made;
    Ok(())
}
