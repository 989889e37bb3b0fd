//! What the guest and its containers see, made of a FreeBSD's programs.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// What the agent and the programs of a container are linked to.
const LIBRARIES: [&str; 9] = [
    "libc.so.7",
    "libsys.so.7",
    "libthr.so.3",
    "libgcc_s.so.1",
    "libm.so.5",
    "libedit.so.8",
    "libtinfow.so.9",
    "libutil.so.10",
    "libkvm.so.7",
];
const PROGRAMS: [&str; 12] =
    ["sh", "cat", "echo", "ls", "sleep", "kill", "ps", "stty", "hostname", "dd", "pwd", "mkdir"];

fn copy(world: &Path, root: &Path, dir: &str, names: &[&str]) -> anyhow::Result<()> {
    fs::create_dir_all(root.join(dir))?;
    for name in names {
        let from = [dir, "usr/lib", "usr/bin"].map(|dir| world.join(dir).join(name));
        let Some(from) = from.iter().find(|path| path.exists()) else { continue };
        fs::copy(from, root.join(dir).join(name)).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

/// The guest's own tree.
pub(crate) fn guest(agent: &Path, world: &Path, root: &Path) -> anyhow::Result<()> {
    for dir in ["dev", "run", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    copy(world, root, "lib", &LIBRARIES)?;
    copy(world, root, "libexec", &["ld-elf.so.1"])?;
    fs::copy(agent, root.join("skep-agent")).with_context(|| agent.display().to_string())?;
    Ok(())
}

/// The root of containers.
pub(crate) fn image(world: &Path, root: &Path) -> anyhow::Result<()> {
    for dir in ["dev", "etc", "tmp", "var/www"] {
        fs::create_dir_all(root.join(dir))?;
    }
    copy(world, root, "lib", &LIBRARIES)?;
    copy(world, root, "libexec", &["ld-elf.so.1"])?;
    copy(world, root, "bin", &PROGRAMS)?;
    copy(world, root, "usr/bin", &["id", "env", "true"])?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\n")?;
    fs::write(root.join("etc/plain"), "plain\n")?;
    Ok(())
}
