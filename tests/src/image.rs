//! OCI images made here: Debian's static busybox, its applets as links, and the variations that tests need.
//!
//! An image is written as an OCI image layout in a tar file, which `ctr image import` takes. The same input gives the
//! same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr as _;

use anyhow::{Context, Result, ensure};
use oci_spec::image::{
    ANNOTATION_REF_NAME, Arch, Config, Descriptor, DescriptorBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder,
    SCHEMA_VERSION, Sha256Digest,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::elf;

/// Where containerd looks for an imported image's name before the OCI annotation.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The search path that images and containers get where nothing else is said.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Clone, Debug)]
enum Node {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Symlink { target: PathBuf },
}

/// An image with one layer, described in memory.
#[derive(Clone, Debug)]
pub struct Image {
    reference: String,
    architecture: Arch,
    os: Os,
    config: Config,
    nodes: BTreeMap<PathBuf, Node>,
}

impl Image {
    /// An image without any file, of the machine that this runs on. `reference` is its full name, with registry and tag.
    pub fn empty(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            architecture: Arch::default(),
            os: Os::Linux,
            config: Config::default(),
            nodes: BTreeMap::new(),
        }
    }

    /// Debian's busybox-static with a link for each applet, `/etc/passwd` with `root` and `user` (1000), an environment
    /// with `PATH`, and `sh` as its command.
    ///
    /// The binary is the one that `SKEP_BUSYBOX` names, else the one that this machine has installed.
    pub fn busybox(reference: &str) -> Result<Self> {
        Self::busybox_from(reference, &installed_busybox()?)
    }

    /// The same with the static busybox at `path`.
    pub fn busybox_from(reference: &str, path: &Path) -> Result<Self> {
        let (binary, applets) = read_busybox(path)?;
        let mut image = Self::empty(reference).file("bin/busybox", 0o755, binary);
        for directory in ["dev", "etc", "proc", "root", "run", "sys", "usr/bin", "usr/sbin", "sbin", "var"] {
            image = image.directory(directory, 0o755);
        }
        for applet in applets.iter().filter(|applet| *applet != "busybox") {
            image = image.symlink(Path::new("bin").join(applet), "busybox");
        }
        Ok(image
            .directory("tmp", 0o1777)
            .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n")
            .file("etc/group", 0o644, "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")
            .env([PATH])
            .cmd(["sh"]))
    }

    /// A FreeBSD image: these programs of the FreeBSD that this runs on, with their libraries, and the users of the
    /// busybox image.
    pub fn of_this_freebsd(reference: &str, programs: &[&str]) -> Result<Self> {
        let read = |path: &str| fs::read(path).with_context(|| format!("reading {path}"));
        let inside = |path: &str| PathBuf::from(path.trim_start_matches('/'));
        let mut image = Self::empty(reference);
        image.os = Os::FreeBSD;
        let loader = "/libexec/ld-elf.so.1";
        image = image.file(inside(loader), 0o755, read(loader)?);
        for program in programs {
            image = image.file(inside(program), 0o755, read(program)?);
            // ldd(1): the path of each library.
            let output =
                Command::new("ldd").args(["-f", "%p\\n", program]).output().context("running ldd")?;
            for library in
                String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with('/'))
            {
                image = image.file(inside(library), 0o755, read(library)?);
            }
        }
        for directory in ["dev", "root", "usr/bin"] {
            image = image.directory(directory, 0o755);
        }
        Ok(image
            .directory("tmp", 0o1777)
            .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n")
            .file("etc/group", 0o644, "root:x:0:\nuser:x:1000:\n")
            .env([PATH])
            .cmd(["sh"]))
    }

    /// The image's full name.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Gives the image another name.
    #[must_use]
    pub fn named(mut self, reference: &str) -> Self {
        reference.clone_into(&mut self.reference);
        self
    }

    /// Adds or replaces a regular file. `path` is relative to the image's root.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.nodes.insert(path.into(), Node::File { mode, content: content.into() });
        self
    }

    /// Adds or replaces a directory.
    #[must_use]
    pub fn directory(mut self, path: impl Into<PathBuf>, mode: u32) -> Self {
        self.nodes.insert(path.into(), Node::Directory { mode });
        self
    }

    /// Adds or replaces a symbolic link.
    #[must_use]
    pub fn symlink(mut self, path: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.nodes.insert(path.into(), Node::Symlink { target: target.into() });
        self
    }

    /// Sets the entry point.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.config.set_entrypoint(Some(words.into_iter().map(Into::into).collect()));
        self
    }

    /// Sets the command, or the entry point's arguments.
    #[must_use]
    pub fn cmd<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.config.set_cmd(Some(words.into_iter().map(Into::into).collect()));
        self
    }

    /// Sets the environment, each as `NAME=value`.
    #[must_use]
    pub fn env<S: Into<String>>(mut self, variables: impl IntoIterator<Item = S>) -> Self {
        self.config.set_env(Some(variables.into_iter().map(Into::into).collect()));
        self
    }

    /// Sets the user, as `name`, `uid` or `uid:gid`.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.config.set_user(Some(user.to_owned()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn workdir(mut self, path: &str) -> Self {
        self.config.set_working_dir(Some(path.to_owned()));
        self
    }

    /// Puts a program of another architecture at `path`, whatever the image claims to be.
    #[must_use]
    pub fn foreign_program(self, path: impl Into<PathBuf>) -> Self {
        self.file(path, 0o755, elf::executable(elf::Machine::Aarch64, &[]))
    }

    /// Writes the image as an OCI image layout into a tar file at `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("creating image archive {}", path.display()))?;
        let mut archive = Archive(tar::Builder::new(BufWriter::new(file)));
        self.write_layout(&mut archive).with_context(|| format!("writing image archive {}", path.display()))
    }

    /// Puts the image's files below `directory`, as a root file system for specs that name one.
    pub fn unpack(&self, directory: &Path) -> Result<()> {
        let mut archive = tar::Archive::new(io::Cursor::new(self.layer()?));
        archive.set_preserve_permissions(true);
        archive.unpack(directory).with_context(|| format!("unpacking into {}", directory.display()))
    }

    fn write_layout<W: Write>(&self, archive: &mut Archive<W>) -> Result<()> {
        let layer = self.layer()?;
        let layer_digest = sha256(&layer);
        let config = ImageConfigurationBuilder::default()
            .architecture(self.architecture.clone())
            .os(self.os.clone())
            .config(self.config.clone())
            .rootfs(
                RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids([format!("sha256:{layer_digest}")])
                    .build()?,
            )
            .build()?;
        let config = canonical(&config)?;

        archive.add(
            "oci-layout",
            &canonical(&OciLayoutBuilder::default().image_layout_version("1.0.0").build()?)?,
        )?;
        let layer_blob = descriptor(MediaType::ImageLayer, &layer)?;
        archive.blob(&layer)?;
        archive.blob(&config)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, &config)?)
            .layers([layer_blob])
            .build()?;
        let manifest = canonical(&manifest)?;
        archive.blob(&manifest)?;

        let mut entry = descriptor(MediaType::ImageManifest, &manifest)?;
        entry.set_platform(Some(
            PlatformBuilder::default().architecture(self.architecture.clone()).os(self.os.clone()).build()?,
        ));
        entry.set_annotations(Some(
            [(CONTAINERD_NAME, &self.reference), (ANNOTATION_REF_NAME, &self.reference)]
                .map(|(key, value)| (key.to_owned(), value.clone()))
                .into(),
        ));
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests([entry])
            .build()?;
        archive.add("index.json", &canonical(&index)?)?;
        archive.0.finish()?;
        archive.0.get_mut().flush()?;
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Archive(tar::Builder::new(Vec::new()));
        for (path, node) in &self.nodes {
            ensure!(path.is_relative(), "path {} in an image is absolute", path.display());
            match node {
                Node::Directory { mode } => layer.entry(path, tar::EntryType::Directory, *mode, &[])?,
                Node::File { mode, content } => layer.entry(path, tar::EntryType::Regular, *mode, content)?,
                Node::Symlink { target } => {
                    let mut header = header(tar::EntryType::Symlink, 0o777);
                    header.set_size(0);
                    layer.0.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(layer.0.into_inner()?)
    }
}

/// Names the static busybox to make images of.
pub const BUSYBOX_VARIABLE: &str = "SKEP_BUSYBOX";

/// The extension of the file beside busybox that has what `busybox --list` says, for hosts that can't run it.
pub const APPLETS: &str = "applets";

/// The static busybox that images are made of: the one that [`BUSYBOX_VARIABLE`] names, else this machine's.
pub fn installed_busybox() -> Result<PathBuf> {
    const PLACES: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
    if let Some(path) = std::env::var_os(BUSYBOX_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    PLACES.into_iter().map(PathBuf::from).find(|path| path.exists()).with_context(|| {
        format!(
            "no busybox at {}: install Debian's busybox-static or let {BUSYBOX_VARIABLE} name it",
            PLACES.join(" or ")
        )
    })
}

/// The binary and the names of its applets.
fn read_busybox(path: &Path) -> Result<(Vec<u8>, Vec<String>)> {
    let shown = path.display();
    let binary = fs::read(path).with_context(|| format!("reading {shown}"))?;
    let is_static = elf::is_static(&binary).with_context(|| format!("reading {shown}"))?;
    ensure!(is_static, "{shown} is not static: take Debian's busybox-static in its place");
    let list = path.with_extension(APPLETS);
    let applets = if cfg!(target_os = "linux") {
        let output =
            Command::new(path).arg("--list").output().with_context(|| format!("running {shown} --list"))?;
        ensure!(output.status.success(), "{shown} --list: {}", output.status);
        String::from_utf8(output.stdout).with_context(|| format!("reading what {shown} --list says"))?
    } else {
        fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?
    };
    Ok((binary, applets.lines().map(str::to_owned).collect()))
}

struct Archive<W: Write>(tar::Builder<W>);

impl<W: Write> Archive<W> {
    fn add(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.entry(Path::new(path), tar::EntryType::Regular, 0o644, content)
    }

    fn blob(&mut self, content: &[u8]) -> Result<()> {
        self.add(&format!("blobs/sha256/{}", sha256(content)), content)
    }

    fn entry(&mut self, path: &Path, kind: tar::EntryType, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = header(kind, mode);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).with_context(|| format!("adding {}", path.display()))
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn descriptor(media_type: MediaType, content: &[u8]) -> Result<Descriptor> {
    Ok(DescriptorBuilder::default()
        .media_type(media_type)
        .digest(Sha256Digest::from_str(&sha256(content))?)
        .size(content.len() as u64)
        .build()?)
}

/// JSON with sorted keys: `oci-spec` keeps annotations in hash maps, whose order differs from run to run.
fn canonical(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::to_value(value)?)?)
}

fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
    use std::io::Read as _;

    fn read(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, digest: &str) -> &'a [u8] {
        let content = &files[&format!("blobs/{}", digest.replace(':', "/"))];
        assert_eq!(format!("sha256:{}", sha256(content)), digest);
        content
    }

    #[test]
    fn layout_leads_from_index_to_layer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        let image = Image::empty("skep.test/one:1")
            .file("bin/true", 0o755, "program")
            .symlink("bin/false", "true")
            .entrypoint(["/bin/true"])
            .env(["A=b"])
            .user("1000")
            .workdir("/tmp");
        image.write(&path).unwrap();
        let files = read(&path);

        let index = ImageIndex::from_reader(files["index.json"].as_slice()).unwrap();
        let entry = &index.manifests()[0];
        assert_eq!(entry.annotations().as_ref().unwrap()[CONTAINERD_NAME], "skep.test/one:1");
        let manifest = ImageManifest::from_reader(blob(&files, entry.digest().as_ref())).unwrap();
        let config =
            ImageConfiguration::from_reader(blob(&files, manifest.config().digest().as_ref())).unwrap();
        assert_eq!(config.config().as_ref().unwrap().user().as_deref(), Some("1000"));
        let layer = &manifest.layers()[0];
        assert_eq!(config.rootfs().diff_ids(), &[layer.digest().to_string()]);

        let mut layer = tar::Archive::new(blob(&files, layer.digest().as_ref()));
        let names: Vec<_> =
            layer.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("bin/false"), Path::new("bin/true")]);
    }

    #[test]
    fn same_image_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            let path = directory.path().join(name);
            Image::empty("skep.test/one:1").directory("b", 0o755).file("a", 0o644, "x").write(&path).unwrap();
            sha256(&fs::read(path).unwrap())
        });
        assert_eq!(one, two);
    }

    #[test]
    fn absolute_paths_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error =
            Image::empty("x").file("/bin/sh", 0o755, "").write(&directory.path().join("x")).unwrap_err();
        assert!(format!("{error:#}").contains("/bin/sh"), "{error:#}");
    }
}
