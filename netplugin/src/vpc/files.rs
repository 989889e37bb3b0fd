//! Where declarations are kept, and how one takes the place of another.
//!
//! Three files a network: the declaration; what of it concerns VXLAN, with this node's name, which the plugin reads at
//! every call; the CNI configuration. The last two follow from the first and are made anew with it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::conflist::{self, plugin_config};
use super::{Declaration, DeclarationError};
use crate::cni::{CniError, check_name};
use crate::datapath::Datapath;
use crate::network::{Lock, StateError, Store, create_dir, io, names, remove};
use crate::plugin;

/// The directories.
#[derive(Clone, Debug)]
pub struct Directory {
    dir: PathBuf,
    cni_dir: PathBuf,
}

/// A declaration that is in force on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Which node this host is.
    pub node: String,
    /// Which revision it has now.
    pub revision: u64,
    /// Whether it had another one, or none.
    pub changed: bool,
}

/// Why a declaration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The declaration, or what is here already.
    #[error(transparent)]
    Declaration(#[from] DeclarationError),
    /// Making the network failed; the earlier declaration is in its place again.
    #[error("{error}{}", if errors.is_empty() { String::new() } else { format!("; going back: {}", errors.join("; ")) })]
    Network {
        /// What failed.
        error: CniError,
        /// What failed while going back.
        errors: Vec<String>,
    },
}

impl From<StateError> for InstallError {
    fn from(error: StateError) -> Self {
        Self::Declaration(error.into())
    }
}

impl Directory {
    /// The usual ones.
    pub fn new() -> Self {
        let etc = Path::new(if cfg!(target_os = "freebsd") { "/usr/local/etc" } else { "/etc" });
        Self { dir: etc.join("skep/net"), cni_dir: etc.join("cni/net.d") }
    }

    /// Others than the usual.
    #[must_use]
    pub fn at(mut self, dir: Option<PathBuf>, cni_dir: Option<PathBuf>) -> Self {
        self.dir = dir.unwrap_or(self.dir);
        self.cni_dir = cni_dir.unwrap_or(self.cni_dir);
        self
    }

    /// The declaration's file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    fn vxlan_path(&self, name: &str) -> PathBuf {
        self.dir.join("vxlan").join(format!("{name}.json"))
    }

    /// The CNI configuration's file.
    pub fn conflist_path(&self, name: &str) -> PathBuf {
        self.cni_dir.join(format!("skep-{name}.conflist"))
    }

    /// The file that the CNI configuration names.
    pub(crate) fn conflist(&self, declaration: &Declaration, node: &str) -> Result<Value, DeclarationError> {
        let member =
            declaration.local(Some(node), &[]).or_else(|error| declaration.find(node).ok_or(error))?;
        conflist::conflist(declaration, member, &self.vxlan_path(&declaration.name))
    }

    /// A directory below that of the declarations.
    pub(super) fn subdirectory(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn lock(&self) -> Result<Lock, StateError> {
        create_dir(&self.dir.join("vxlan"))?;
        Lock::take(&self.dir.join("lock"))
    }

    /// The networks declared here.
    pub fn list(&self) -> Result<Vec<String>, StateError> {
        names(&self.dir)
    }

    /// The declaration of a network, if there is one.
    pub fn find(&self, name: &str) -> Result<Option<Declaration>, DeclarationError> {
        check_name(name).map_err(|why| super::wrong("name", why))?;
        let path = self.path(name);
        let Some(text) = read(&path)? else { return Ok(None) };
        let declaration = Declaration::parse(&text)
            .map_err(|error| StateError::Format { path: path.clone(), why: error.to_string() })?;
        if declaration.name != name {
            let why = format!("name: is `{}`, another than the file's", declaration.name);
            return Err(StateError::Format { path, why }.into());
        }
        Ok(Some(declaration))
    }

    /// The declaration of a network.
    pub fn load(&self, name: &str) -> Result<Declaration, DeclarationError> {
        self.find(name)?
            .ok_or_else(|| DeclarationError::Missing { name: name.to_owned(), dir: self.dir.clone() })
    }

    /// Writes down a declaration without making anything of it: this host is none of its nodes.
    pub fn save(&self, declaration: &Declaration) -> Result<(), DeclarationError> {
        let _lock = self.lock()?;
        Ok(write(&self.path(&declaration.name), declaration.to_text()?.as_bytes())?)
    }

    /// Puts a declaration into force on this host, which is `node` (or, where none is named, the node whose address it
    /// has): its files take the place of the earlier ones, the network is made or brought into line. If that fails,
    /// what was there before is there again.
    pub fn install<D: Datapath>(
        &self,
        datapath: &D,
        offered: &Declaration,
        node: Option<&str>,
        data_dir: Option<&Path>,
    ) -> Result<Installed, InstallError> {
        offered.validate()?;
        let addresses = host_addresses()?;
        let member = offered.local(node, &addresses)?;
        let _lock = self.lock()?;
        let earlier = self.find(&offered.name)?;
        if let Some(here) = &earlier {
            in_order(here, offered)?;
        }
        // The same as the runtime's calls will have, but for where the part about VXLAN comes from.
        let config = plugin_config(offered, member, None)?;
        let conf = conflist::parse(&config).map_err(DeclarationError::from)?;
        let store = Store::new(
            data_dir
                .map(Path::to_owned)
                .or_else(|| conf.data_dir.clone())
                .unwrap_or_else(|| Store::default_dir().to_owned()),
        );
        if let Some(here) = &earlier
            && store.has_others(&offered.name, "")?
        {
            offered.keeps_addresses_of(here)?;
        }
        let name = &offered.name;
        let conflist = conflist::conflist(offered, member, &self.vxlan_path(name))?;
        let files = [
            (self.path(name), offered.to_text()?),
            (self.vxlan_path(name), text(&offered.vpc(Some(&member.name)))?),
            (self.conflist_path(name), text(&conflist)?),
        ];
        let before = files
            .iter()
            .map(|(path, _)| Ok((path.clone(), read(path)?)))
            .collect::<Result<Vec<_>, StateError>>()?;
        create_dir(&self.cni_dir)?;
        let made = files
            .iter()
            .try_for_each(|(path, text)| write(path, text.as_bytes()))
            .map_err(CniError::from)
            .and_then(|()| plugin::up(datapath, &store, &conf));
        if let Err(error) = made {
            let errors = go_back(datapath, &store, &before, earlier.as_ref(), &addresses);
            return Err(InstallError::Network { error, errors });
        }
        Ok(Installed {
            node: member.name.clone(),
            revision: offered.revision,
            changed: earlier.as_ref() != Some(offered),
        })
    }

    /// Removes a network that has no sandboxes from this host, with its files.
    pub fn delete<D: Datapath>(&self, datapath: &D, name: &str, store: &Store) -> Result<(), InstallError> {
        check_name(name).map_err(|why| super::wrong("name", why))?;
        let _lock = self.lock()?;
        self.take_away(datapath, name, store)
    }

    /// Takes the network away from this host, which was its node `node` and is none by `offered`. There may be nothing
    /// to take away.
    pub fn leave<D: Datapath>(
        &self,
        datapath: &D,
        offered: &Declaration,
        node: &str,
        store: &Store,
    ) -> Result<Installed, InstallError> {
        offered.validate()?;
        let refused = |why: String| DeclarationError::NotANode { network: offered.name.clone(), why };
        if let Some(still) = offered.local(None, &host_addresses()?).ok().or_else(|| offered.find(node)) {
            return Err(
                refused(format!("node `{}` is one of its nodes, it does not leave", still.name)).into()
            );
        }
        let _lock = self.lock()?;
        let here = self.find(&offered.name)?;
        if let Some(here) = &here {
            in_order(here, offered)?;
            if here.find(node).is_none() {
                return Err(refused(format!("`{node}` is none of its nodes by what is here")).into());
            }
            self.take_away(datapath, &offered.name, store)?;
        }
        Ok(Installed { node: node.to_owned(), revision: offered.revision, changed: here.is_some() })
    }

    /// Removes a network. The lock is held.
    fn take_away<D: Datapath>(&self, datapath: &D, name: &str, store: &Store) -> Result<(), InstallError> {
        // First the files: no sandbox is attached by them any more.
        let conflist = self.conflist_path(name);
        let kept = read(&conflist)?;
        remove(&conflist)?;
        if let Err(error) = plugin::down(datapath, store, name) {
            let errors = kept
                .and_then(|content| write(&conflist, &content).err())
                .map(|error| error.to_string())
                .into_iter()
                .collect();
            return Err(InstallError::Network { error, errors });
        }
        remove(&self.vxlan_path(name))?;
        self.forget_all(name)?;
        Ok(remove(&self.path(name))?)
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts the files back, and the network into the state they speak of.
fn go_back<D: Datapath>(
    datapath: &D,
    store: &Store,
    before: &[(PathBuf, Option<Vec<u8>>)],
    earlier: Option<&Declaration>,
    addresses: &[std::net::IpAddr],
) -> Vec<String> {
    let mut errors = Vec::new();
    for (path, content) in before {
        let restored = match content {
            Some(content) => write(path, content),
            None => remove(path),
        };
        errors.extend(restored.err().map(|error| error.to_string()));
    }
    let again = earlier.and_then(|earlier| {
        let config = plugin_config(earlier, earlier.local(None, addresses).ok()?, None).ok()?;
        conflist::parse(&config).ok()
    });
    if let Some(conf) = again {
        errors.extend(plugin::up(datapath, store, &conf).err().map(|error| error.to_string()));
    }
    errors
}

/// Whether `offered` may take the place of what is here.
fn in_order(here: &Declaration, offered: &Declaration) -> Result<(), DeclarationError> {
    let refused = |why| {
        Err(DeclarationError::Revision {
            name: offered.name.clone(),
            here: here.revision,
            offered: offered.revision,
            why,
        })
    };
    if offered.revision < here.revision {
        return refused("it is older; change the newest one, which `skep net show` prints where it is");
    }
    if offered.revision == here.revision && offered != here {
        return refused(
            "somebody else changed it too; make one of the two changes again, on top of the other",
        );
    }
    Ok(())
}

/// The addresses of this host's interfaces.
pub(crate) fn host_addresses() -> Result<Vec<std::net::IpAddr>, StateError> {
    let interfaces = nix::ifaddrs::getifaddrs()
        .map_err(|errno| io("list", Path::new("the host's addresses"))(errno.into()))?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|at| at.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|at| at.ip().into()))
        })
        .collect())
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

fn text(value: &impl Serialize) -> Result<String, DeclarationError> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| DeclarationError::Json { field: ".".to_owned(), why: error.to_string() })
}

/// Puts a file in the place of an earlier one: a reader, and a host that loses power, has the one or the other.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), StateError> {
    // No runtime takes a name without a known ending for a configuration.
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o644)
        .open(&temporary)
        .map_err(io("create", &temporary))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io("rename", &temporary))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync", dir))
}
