//! The guest's Linux kernel: Debian's source, our patches and configuration, one stripped `vmlinux` with a PVH entry.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cache::Cache;
use crate::progress::{Step, megabytes};
use crate::{apt, command, elf, kconfig, workspace};

/// Raised when the steps below change, so that kernels made by the old ones are not taken for new.
const RECIPE: u32 = 1;
/// gcc's -Os, which the configuration chooses, fills and copies memory by byte-wise string instructions in line: slow
/// everywhere, and most of all under software emulation. Calling the kernel's own routines instead takes a quarter off
/// the time to PID 1 and is no bigger.
const FLAGS: &str = "-mstringop-strategy=libcall";
/// The name of the kernel's image in the cache and in the artefact.
pub(crate) const IMAGE: &str = "vmlinux";
/// Parts of the source tree that no build of ours reads; left out they save a third of the unpacking.
const LEFT_OUT: &[&str] = &["*/Documentation/*/*", "*/drivers/gpu/drm/amd/include", "*/tools/testing"];

/// A built kernel in the cache.
#[derive(Debug)]
pub(crate) struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    /// What `uname -r` says in the guest.
    pub(crate) fn release(&self) -> Result<String> {
        let text =
            std::fs::read_to_string(self.dir.join("release")).context("cannot read the kernel's release")?;
        Ok(text.trim().to_owned())
    }

    /// The configuration it was built with.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }
}

/// The kernel for `arch`, from the cache or built now.
pub(crate) fn build(arch: &str, cache: &Cache) -> Result<Kernel> {
    apt::ensure(&[apt::COMPILER, apt::KERNEL], cache)?;
    let wanted = wanted_config(arch)?;
    let patches = patches()?;
    let source = apt::installed_version(apt::KERNEL_SOURCE_PACKAGE)?;
    let compiler = command::output(Command::new("gcc").arg("-dumpfullversion"), Duration::from_secs(30))?;
    let texts: String = patches.iter().map(|(_, text)| text.as_str()).collect();
    let inputs = format!(
        "recipe {RECIPE}\narch {arch}\n{} {source}\ngcc {} {FLAGS}\n{wanted}{texts}",
        apt::KERNEL_SOURCE_PACKAGE,
        compiler.trim()
    );
    let dir = cache.get_or_build("kernel", &inputs, |result| {
        let tree = tempfile::tempdir_in(result).context("cannot make a directory for the kernel's source")?;
        compile(arch, &wanted, &patches, tree.path(), result, cache)
    })?;
    Ok(Kernel { dir })
}

fn wanted_config(arch: &str) -> Result<String> {
    let dir = workspace::root().join("packaging/guest/linux");
    let mut text = String::new();
    for name in ["kernel.config".to_owned(), format!("{arch}.config")] {
        let path = dir.join(name);
        text += &std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the kernel configuration {}", path.display()))?;
    }
    Ok(text)
}

/// What Debian's source lacks, in the order of the names: path and text of each patch.
fn patches() -> Result<Vec<(PathBuf, String)>> {
    let dir = workspace::root().join("packaging/guest/linux/patches");
    let read = || -> std::io::Result<Vec<(PathBuf, String)>> {
        let mut paths = std::fs::read_dir(&dir)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        paths.into_iter().map(|path| Ok((path.clone(), std::fs::read_to_string(path)?))).collect()
    };
    read().with_context(|| format!("cannot read the kernel's patches in {}", dir.display()))
}

fn compile(
    arch: &str,
    wanted: &str,
    patches: &[(PathBuf, String)],
    tree: &Path,
    result: &Path,
    cache: &Cache,
) -> Result<()> {
    let log = cache.log("kernel")?;
    let mut step = Step::start("unpacking the kernel's source");
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file", apt::KERNEL_SOURCE])
        .arg("--directory")
        .arg(tree);
    tar.args(LEFT_OUT.iter().map(|path| format!("--exclude={path}")));
    command::run_logged(&mut tar, &log, &mut step)?;
    for (path, _) in patches {
        let mut patch = Command::new("patch");
        // No fuzz: a patch that no longer fits is to be looked at.
        patch.args(["--strip=1", "--fuzz=0", "--forward", "--batch", "--input"]).arg(path);
        patch.arg("--directory").arg(tree);
        command::run_logged(&mut patch, &log, &mut step)
            .with_context(|| format!("{} does not fit the kernel's source", path.display()))?;
    }
    step.done("");

    let mut step = Step::start("configuring the guest's kernel");
    let fragment = tree.join("skep.config");
    std::fs::write(&fragment, wanted).context("cannot write the kernel configuration")?;
    let mut configure = make(arch, tree);
    configure.env("KCONFIG_ALLCONFIG", &fragment).arg("allnoconfig");
    command::run_logged(&mut configure, &log, &mut step)?;
    let config = std::fs::read_to_string(tree.join(".config")).context("cannot read the kernel's .config")?;
    let lost = kconfig::lost(wanted, &config)?;
    ensure!(
        lost.is_empty(),
        "the kernel's configuration did not take these lines of packaging/guest/linux (a dependency is missing, or \
         the option has another name):\n  {}",
        lost.join("\n  ")
    );
    step.done(&format!("{} options on", config.lines().filter(|line| line.ends_with("=y")).count()));

    let mut step = Step::start("building the guest's kernel (5 to 10 minutes on 2 cores)");
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    command::run_logged(make(arch, tree).arg(format!("--jobs={jobs}")).arg(IMAGE), &log, &mut step)?;
    let release = std::fs::read_to_string(tree.join("include/config/kernel.release"))
        .context("cannot read the kernel's release")?;
    let stripped = tree.join("vmlinux.stripped");
    let mut strip = Command::new("strip");
    command::run_logged(strip.arg("-o").arg(&stripped).arg(tree.join(IMAGE)), &log, &mut step)?;
    let stripped = std::fs::read(&stripped).context("cannot read the stripped kernel")?;
    let packed = elf::pack(&stripped).context("cannot pack the kernel's ELF file")?;
    std::fs::write(result.join(IMAGE), &packed).context("cannot write the kernel")?;
    std::fs::write(result.join("config"), config).context("cannot write the kernel's configuration")?;
    std::fs::write(result.join("release"), release).context("cannot write the kernel's release")?;
    step.done(&megabytes(packed.len() as u64));
    Ok(())
}

/// `make` in the kernel's tree, with everything pinned that would make two builds of the same source differ.
fn make(arch: &str, tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("--directory").arg(tree).arg(format!("ARCH={arch}"));
    make.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01T00:00:00Z");
    make.env("KBUILD_BUILD_USER", "skep").env("KBUILD_BUILD_HOST", "skep").env("LC_ALL", "C");
    // Ours would be taken for options of the kernel's build.
    for name in ["MAKEFLAGS", "MFLAGS", "CFLAGS", "LOCALVERSION", "CROSS_COMPILE"] {
        make.env_remove(name);
    }
    make.env("KCFLAGS", FLAGS);
    make
}
