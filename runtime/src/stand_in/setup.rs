//! What a stand-in is told when it starts.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest setup: a specification's mounts are a few hundred bytes each.
const MOST: usize = 16 << 20;

/// What of a container's files a stand-in shows at `/proc/<pid>/root`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The container's root on this host; nothing if what its processes see is not on this host.
    pub root: Option<PathBuf>,
    /// Whether nothing may be written there.
    pub readonly: bool,
    /// What the container has mounted, in its order.
    pub mounts: Vec<Mounted>,
    /// A directory that the stand-in may mount on, for itself.
    pub scratch: PathBuf,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mounted {
    /// Where in the container.
    pub destination: PathBuf,
    /// Where on this host; nothing if it is the guest's own (a tmpfs, /proc), so that nothing can be shown of it.
    pub source: Option<PathBuf>,
}

impl Setup {
    /// Writes it, its length first.
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len()).map_err(io::Error::other)?;
        Ok([&length.to_le_bytes(), &json[..]].concat())
    }

    /// Reads what [`Setup::encode`] wrote.
    pub(super) fn read(mut from: impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut json = vec![0; length];
        from.read_exact(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

/// How a stand-in answers: ready, or why not. One line.
pub(super) fn answer(mut to: impl Write, done: &io::Result<()>) -> io::Result<()> {
    match done {
        Ok(()) => to.write_all(b"\n"),
        Err(error) => to.write_all(format!("{}\n", error.to_string().replace('\n', " ")).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_is_read_as_it_was_written() {
        let setup = Setup {
            root: Some("/r".into()),
            readonly: true,
            mounts: vec![
                Mounted { destination: "/proc".into(), source: None },
                Mounted { destination: "/v".into(), source: Some("/share/v".into()) },
            ],
            scratch: "/s".into(),
        };
        let bytes = setup.encode().unwrap();
        assert_eq!(Setup::read(&bytes[..]).unwrap(), setup);
        assert!(Setup::read(&bytes[..bytes.len() - 1]).is_err());
        assert!(Setup::read(&u32::MAX.to_le_bytes()[..]).is_err());
    }
}
