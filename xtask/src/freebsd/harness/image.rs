//! The disk image: what it is, and its contents where they are compressed.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::command;
use crate::progress::Step;

/// How qcow2 files begin: docs/interop/qcow2.rst of QEMU.
const QCOW2: &[u8] = b"QFI\xfb";
/// How xz files begin: section 2.1.1.1 of the format's specification.
const XZ: &[u8] = b"\xfd7zXZ\0";
/// How many bytes decide.
const MAGIC: usize = 512;

/// A disk that QEMU can start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// QEMU's name of the format.
    pub(crate) format: &'static str,
}

/// The disk in the image at `path`, which is unpacked into the cache if it is compressed.
pub(crate) fn prepare(path: &Path, cache: &Cache) -> Result<Disk> {
    let path = std::path::absolute(path).context("cannot make the image's path absolute")?;
    if !begin(&path)?.starts_with(XZ) {
        return disk(path);
    }
    let metadata = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let inputs = format!("{}\n{}\n{modified}\n", path.display(), metadata.len());
    let directory = cache.get_or_build("freebsd-image", &inputs, |directory| {
        let mut step = Step::start(format!("unpacking {}", path.display()));
        let out = File::create(directory.join("disk")).context("cannot create the unpacked image")?;
        let mut child = Command::new("xz")
            .args(["--decompress", "--stdout", "--threads=0"])
            .arg(&path)
            .stdout(out)
            .spawn()
            .context("cannot run xz: is xz-utils installed?")?;
        while child.try_wait()?.is_none() {
            step.beat();
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "xz failed ({status})");
        step.done("");
        Ok(())
    })?;
    disk(directory.join("disk"))
}

fn disk(path: PathBuf) -> Result<Disk> {
    let magic = begin(&path)?;
    let format = if magic.starts_with(QCOW2) {
        "qcow2"
    } else if magic.get(510..512) == Some(&[0x55, 0xaa]) {
        "raw"
    } else {
        bail!(
            "{} is neither a qcow2 file nor a raw disk with a boot sector, nor either compressed by xz: take an image \
             like FreeBSD-15.0-RELEASE-amd64-ufs.qcow2.xz",
            path.display()
        );
    };
    Ok(Disk { path, format })
}

fn begin(path: &Path) -> Result<Vec<u8>> {
    let mut magic = Vec::with_capacity(MAGIC);
    let file = File::open(path).with_context(|| format!("cannot open the image {}", path.display()))?;
    file.take(MAGIC as u64)
        .read_to_end(&mut magic)
        .with_context(|| format!("cannot read the image {}", path.display()))?;
    Ok(magic)
}

/// The version of the program at `path` by its option `--version`: major and minor.
pub(crate) fn version(path: &Path) -> Result<(u32, u32)> {
    let said = command::output(Command::new(path).arg("--version"), std::time::Duration::from_secs(60))?;
    parse_version(&said).with_context(|| format!("{} tells no version: {said}", path.display()))
}

fn parse_version(said: &str) -> Option<(u32, u32)> {
    let rest = said.split_once("version ")?.1;
    let mut numbers = rest.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_by_how_it_begins() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mut sector = vec![0; 512];
        assert!(disk(write("empty", &[])).is_err());
        assert!(disk(write("zeros", &sector)).unwrap_err().to_string().contains("boot sector"));
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(disk(write("raw", &sector)).unwrap().format, "raw");
        assert_eq!(disk(write("qcow2", b"QFI\xfb\0\0\0\x03")).unwrap().format, "qcow2");
    }

    #[test]
    fn a_compressed_image_is_unpacked_once_for_each_that_is_given() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(&directory.path().join("cache")).unwrap();
        let packed = directory.path().join("image.raw.xz");
        let pack = |last: u8| {
            let mut disk = vec![0; 1 << 20];
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            disk[(1 << 20) - 1] = last;
            std::fs::write(directory.path().join("image.raw"), &disk).unwrap();
            let mut xz = Command::new("xz");
            let status = xz.args(["--force", "--keep"]).arg(directory.path().join("image.raw")).status();
            assert!(status.unwrap().success());
            disk
        };
        let first = pack(1);
        let disk = prepare(&packed, &cache).unwrap();
        assert_eq!((disk.format, std::fs::read(&disk.path).unwrap() == first), ("raw", true));
        // Were it unpacked again, this would be gone.
        std::fs::write(&disk.path, &first[..512]).unwrap();
        assert_eq!(prepare(&packed, &cache).unwrap(), disk);
        assert_eq!(std::fs::read(&disk.path).unwrap(), first[..512]);

        let other = pack(2);
        let disk = prepare(&packed, &cache).unwrap();
        assert!(std::fs::read(&disk.path).unwrap() == other);
        std::fs::write(&packed, [XZ, b"cut off"].concat()).unwrap();
        assert!(prepare(&packed, &cache).unwrap_err().to_string().contains("xz failed"));
    }

    #[test]
    fn versions_are_numbers() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse_version(debian), Some((10, 0)));
        assert_eq!(parse_version("QEMU emulator version 7.2.22"), Some((7, 2)));
        assert_eq!(parse_version("no such thing"), None);
    }
}
