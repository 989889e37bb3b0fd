//! Makes a VM of the kernel's and loads it from files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use object::read::ReadCache;

use super::BhyveError;
use super::loader::{self, BootFile, BootImage};
use super::vmmapi::{VmName, VmmApi};
use crate::hypervisor::{HypervisorError, Phase};

/// What a VM is booted from, and its memory.
#[derive(Debug, Clone, Copy)]
pub struct BootFiles<'a> {
    /// The kernel: what [`loader::plan`] takes.
    pub kernel: &'a Path,
    /// The initramfs, if there is one.
    pub initramfs: Option<&'a Path>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Guest memory in bytes.
    pub memory: u64,
}

impl BootFiles<'_> {
    /// Makes the VM and loads it, and says when it was made and when it was loaded. Blocks. A boot that cannot be
    /// planned makes no VM; after another error there is one unless the error says that somebody else's exists.
    pub fn load(&self, api: &VmmApi, name: &VmName) -> Result<[Phase; 2], HypervisorError> {
        let (kernel, _) = open(self.kernel)?;
        let initramfs = self.initramfs.map(open).transpose()?;
        // Of the kernel only headers are read here.
        let headers = ReadCache::new(&kernel);
        let image = BootImage {
            kernel: &headers,
            initramfs: initramfs.as_ref().map_or(0, |(_, length)| *length),
            command_line: self.command_line,
            memory: self.memory,
        };
        let plan = loader::plan(&image)
            .map_err(|source| BhyveError::Loader { kernel: self.kernel.to_owned(), source })?;
        let mut vm = api.create(name).map_err(BhyveError::from)?;
        let made = Phase::over("vm-made");
        let read = |file, offset, memory: &mut [u8]| match (file, &initramfs) {
            (BootFile::Kernel, _) => kernel.read_exact_at(memory, offset),
            (BootFile::Initramfs, Some((initramfs, _))) => initramfs.read_exact_at(memory, offset),
            (BootFile::Initramfs, None) => Err(io::ErrorKind::NotFound.into()),
        };
        vm.load(&plan, false, read).map_err(BhyveError::from)?;
        Ok([made, Phase::over("vm-loaded")])
    }
}

/// A file and its length in bytes.
fn open(path: &Path) -> Result<(File, u64), HypervisorError> {
    let open = || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    open().map_err(|source| HypervisorError::File { action: "open", path: path.to_owned(), source })
}
