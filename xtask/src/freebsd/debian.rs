//! Where rustup can't be had: Debian's newest Rust, unpacked beside the system's, and the standard library built
//! from its source.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::TARGET;
use crate::cache::Cache;
use crate::progress::Step;
use crate::{apt, command, workspace};

/// Debian 12's Rust that follows upstream (its own is too old), and what it links to.
const PACKAGES: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "rust-web-clippy",
    "libstd-rust-web-dev",
    "libgit2-1.5",
    "libhttp-parser2.9",
    "libmbedcrypto7",
    "libmbedtls14",
    "libmbedx509-1",
];

/// The toolchain's directory in the cache, made now if need be.
pub(super) fn toolchain(linker: &Path, cache: &Cache) -> Result<PathBuf> {
    let packages = packages()?;
    let version = apt::candidate(PACKAGES[0])?;
    let inputs = format!("{TARGET}\n{version}\n{}\n", packages.join(" "));
    cache.get_or_build("freebsd-rust", &inputs, |dir| {
        let log = cache.log("freebsd-rust")?;
        let mut step = Step::start(format!("fetching Debian's Rust {version}"));
        apt::download(&packages, dir, &log, &mut step)?;
        link_libraries(&dir.join("usr/lib"))?;
        step.done("");
        let mut step = Step::start(format!("building the standard library for {TARGET}"));
        build_std(dir, linker, &log, &mut step)?;
        step.done("");
        Ok(())
    })
}

/// cargo of the toolchain in `dir`.
pub(super) fn cargo(dir: &Path, linker: &Path) -> Command {
    let mut path = vec![dir.join("usr/bin"), linker.join("bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new(dir.join("usr/bin/cargo"));
    command.current_dir(workspace::root());
    // A path with a colon in it was not in PATH before either.
    command.env("PATH", std::env::join_paths(path).unwrap_or_default());
    command.env("LD_LIBRARY_PATH", dir.join("usr/lib"));
    // What the rustup that runs us has set leads back to its own toolchain.
    for name in ["RUSTUP_TOOLCHAIN", "RUSTUP_HOME", "CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTC_WRAPPER"]
    {
        command.env_remove(name);
    }
    command
}

/// The packages with those whose names have a version in them.
fn packages() -> Result<Vec<String>> {
    let std = dependency("libstd-rust-web-dev", "libstd-rust-web-")?;
    let llvm = dependency(&std, "libllvm")?;
    Ok(PACKAGES.iter().map(|name| (*name).to_owned()).chain([std, llvm]).collect())
}

fn dependency(package: &str, prefix: &str) -> Result<String> {
    let mut show = Command::new("apt-cache");
    let shown = command::output(show.args(["show", "--no-all-versions", package]), Duration::from_secs(60))
        .with_context(|| format!("Debian's lists have no package {package}"))?;
    let depends = apt::field(&shown, "Depends").unwrap_or_default();
    find_dependency(&depends, prefix).with_context(|| format!("{package} does not depend on a {prefix}*"))
}

fn find_dependency(depends: &str, prefix: &str) -> Option<String> {
    depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

/// rustc looks for its libraries beside its sysroot, where Debian does not put them.
fn link_libraries(lib: &Path) -> Result<()> {
    let places = lib.join("x86_64-linux-gnu");
    for entry in std::fs::read_dir(&places).with_context(|| format!("cannot list {}", places.display()))? {
        let name = entry.context("cannot list the libraries")?.file_name();
        let link = lib.join(&name);
        if name.to_string_lossy().contains(".so") && !link.exists() {
            symlink(Path::new("x86_64-linux-gnu").join(&name), &link)
                .with_context(|| format!("cannot link {}", link.display()))?;
        }
    }
    Ok(())
}

fn build_std(dir: &Path, linker: &Path, log: &Path, step: &mut Step) -> Result<()> {
    let work = tempfile::tempdir_in(dir).context("cannot make a directory for the standard library")?;
    let write = |name: &str, text: &str| {
        std::fs::write(work.path().join(name), text).with_context(|| format!("cannot write {name}"))
    };
    std::fs::create_dir(work.path().join("src")).context("cannot make a source directory")?;
    write("src/lib.rs", "")?;
    write("Cargo.toml", "[package]\nname = 'carrier'\nversion = '0.0.0'\nedition = '2024'\n[workspace]\n")?;
    let mut cargo = cargo(dir, linker);
    cargo.current_dir(work.path());
    // Debian's release is a stable one; building its own standard library is what this switch is for.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Cembed-bitcode=yes -Cdebuginfo=0");
    cargo.env("CARGO_ZIGBUILD_ZIG_PATH", linker.join("ziglang/zig"));
    cargo.args([
        "zigbuild",
        "--release",
        "--target",
        TARGET,
        "-Zbuild-std=std,panic_abort,panic_unwind,test",
    ]);
    command::run_logged(&mut cargo, log, step)?;
    let built = work.path().join("target").join(TARGET).join("release/deps");
    let library = dir.join("usr/lib/rustlib").join(TARGET).join("lib");
    std::fs::create_dir_all(&library).with_context(|| format!("cannot create {}", library.display()))?;
    let mut copied = 0;
    for entry in std::fs::read_dir(&built).with_context(|| format!("cannot list {}", built.display()))? {
        let path = entry.context("cannot list the standard library")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "rlib") && !name.starts_with("libcarrier") {
            std::fs::copy(&path, library.join(&name)).with_context(|| format!("cannot copy {name}"))?;
            copied += 1;
        }
    }
    ensure!(copied > 0, "the build of the standard library left nothing in {}", built.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versioned_dependencies_are_found_by_their_prefix() {
        let depends = "libc6 (>= 2.34), libllvm22 (>= 1:22.1~) | libfoo, libstd-rust-web-1.96 (= 1.96.0)";
        assert_eq!(find_dependency(depends, "libllvm").as_deref(), Some("libllvm22"));
        assert_eq!(find_dependency(depends, "libstd-rust-web-").as_deref(), Some("libstd-rust-web-1.96"));
        assert_eq!(find_dependency(depends, "libllvm2x"), None);
    }
}
