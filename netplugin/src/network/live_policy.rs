//! The policy that a sandbox was given at run time: a file of its own beside the attachment's record, which stays what ADD
//! made it. So a change of policy costs one write of the policy and no reading of anything.
//!
//! A change is in three steps: the new policy is written down as staged, the kernel takes it, and it is renamed into
//! place. What a crash leaves:
//!
//! - before the kernel took it: the old file, the kernel's old rules, and a staged policy;
//! - after: the old file, the kernel's new rules, and a staged policy;
//! - after the renaming: nothing left to do.
//!
//! Whoever finds a staged policy while it holds the lock thus knows that a change was cut short, and ends it by doing
//! it again: the kernel replaces rules as a whole, so doing it twice is doing it once.
//!
//! Nothing is synced. A process that is killed takes none of what it wrote along; a host that loses power loses the
//! kernel's rules and the sandboxes with them, so that no policy is left to be right about. But such a host may keep
//! half a file. The checksum tells: a policy that does not match it counts as one that allows nothing.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{Record, STAGED, StateError, io, list, parse, remove};
use super::store::Store;
use crate::policy::Policy;

/// What a policy is called that the kernel has taken.
const IN_FORCE: &str = "policy";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    policy: Policy,
}

impl Record for Text {
    const VERSION: u32 = 1;

    fn version(&self) -> u32 {
        self.version
    }
}

#[derive(Serialize)]
struct TextOf<'a> {
    version: u32,
    policy: &'a Policy,
}

/// A policy that was written down and is not in force yet. Dropped, it never was.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
    kept: bool,
}

impl Staged {
    /// The kernel has it: from now on it is the sandbox's.
    pub(crate) fn keep(mut self) -> Result<(), StateError> {
        fs::rename(&self.path, self.path.with_extension(IN_FORCE)).map_err(io("rename", &self.path))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.kept {
            // Should this fail, whoever finds it ends the change.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Store {
    fn policy_path(&self, network: &str, id: &str, kind: &str) -> PathBuf {
        self.attachment_dir(network).join(format!("{id}.{kind}"))
    }

    /// The policy that an attachment was given at run time, if it was.
    pub(super) fn live_policy(&self, network: &str, id: &str) -> Result<Option<Policy>, StateError> {
        Ok(match read(&self.policy_path(network, id, IN_FORCE))? {
            Found::Nothing => None,
            Found::Torn => Some(Policy::default()),
            Found::Whole(policy) => Some(policy),
        })
    }

    /// Writes a policy down before the kernel gets it. The lock is held.
    pub(crate) fn stage_policy(
        &self,
        network: &str,
        id: &str,
        policy: &Policy,
    ) -> Result<Staged, StateError> {
        let path = self.policy_path(network, id, STAGED);
        let staged = Staged { path, kept: false };
        let path = &staged.path;
        // Room for the checksum, which comes first.
        let mut text = vec![b' '; CHECKSUM + 1];
        serde_json::to_writer(&mut text, &TextOf { version: Text::VERSION, policy })
            .map_err(|error| StateError::Format { path: path.clone(), why: error.to_string() })?;
        let sum = checksum(&text[CHECKSUM + 1..]);
        text[..CHECKSUM].copy_from_slice(sum.as_bytes());
        text[CHECKSUM] = b'\n';
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(&text))
            .map_err(io("write", path))?;
        Ok(staged)
    }

    /// The attachments of a network whose change of policy was cut short, with what it was to be; none where even that was
    /// not written to its end. The lock is held.
    pub(crate) fn staged_policies(
        &self,
        network: &str,
    ) -> Result<Vec<(String, Option<Policy>, Staged)>, StateError> {
        let mut found = Vec::new();
        for name in list(&self.attachment_dir(network))? {
            let name = name?;
            let Some(id) = name.strip_suffix(STAGED).and_then(|name| name.strip_suffix('.')) else {
                continue;
            };
            let path = self.policy_path(network, id, STAGED);
            let policy = match read(&path)? {
                Found::Nothing | Found::Torn => None,
                Found::Whole(policy) => Some(policy),
            };
            found.push((id.to_owned(), policy, Staged { path, kept: false }));
        }
        Ok(found)
    }

    /// Removes what an attachment was given at run time.
    pub(super) fn remove_policies(&self, network: &str, id: &str) -> Result<(), StateError> {
        remove(&self.policy_path(network, id, STAGED))?;
        remove(&self.policy_path(network, id, IN_FORCE))
    }
}

/// Digits of a checksum.
const CHECKSUM: usize = 8;

fn checksum(text: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(text))
}

/// What a policy's file has.
enum Found {
    /// There is none.
    Nothing,
    /// It was not written to its end.
    Torn,
    /// A policy.
    Whole(Policy),
}

fn read(path: &Path) -> Result<Found, StateError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(io("read", path)(error)),
    };
    let whole = bytes
        .split_at_checked(CHECKSUM)
        .and_then(|(sum, rest)| Some((sum, rest.strip_prefix(b"\n")?)))
        .filter(|(sum, text)| *sum == checksum(text).as_bytes());
    let Some((_, text)) = whole else { return Ok(Found::Torn) };
    parse::<Text>(path, text).map(|text| Found::Whole(text.policy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(cidr: &str) -> Policy {
        serde_json::from_value(json!({"egress": {"allow": [cidr, {"cidr": cidr, "protocol": "tcp"}]}}))
            .unwrap()
    }

    #[test]
    fn a_policy_is_in_force_when_it_is_kept_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        fs::create_dir_all(store.attachment_dir("pods")).unwrap();
        let staged = store.stage_policy("pods", "a", &policy("10.0.0.0/8")).unwrap();
        assert_eq!(store.live_policy("pods", "a").unwrap(), None);
        staged.keep().unwrap();
        assert_eq!(store.live_policy("pods", "a").unwrap(), Some(policy("10.0.0.0/8")));
        drop(store.stage_policy("pods", "a", &policy("192.0.2.0/24")).unwrap());
        assert_eq!(store.live_policy("pods", "a").unwrap(), Some(policy("10.0.0.0/8")));
        assert!(store.staged_policies("pods").unwrap().is_empty());
        // What a kill leaves.
        std::mem::forget(store.stage_policy("pods", "a", &policy("192.0.2.0/24")).unwrap());
        let mut left = store.staged_policies("pods").unwrap();
        let (id, found, staged) = left.remove(0);
        assert_eq!((id.as_str(), found), ("a", Some(policy("192.0.2.0/24"))));
        staged.keep().unwrap();
        assert_eq!(store.live_policy("pods", "a").unwrap(), Some(policy("192.0.2.0/24")));
        store.remove_policies("pods", "a").unwrap();
        assert_eq!(store.live_policy("pods", "a").unwrap(), None);
    }

    #[test]
    fn half_a_file_allows_nothing_and_another_version_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        fs::create_dir_all(store.attachment_dir("pods")).unwrap();
        store.stage_policy("pods", "a", &policy("10.0.0.0/8")).unwrap().keep().unwrap();
        let path = store.policy_path("pods", "a", IN_FORCE);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(store.live_policy("pods", "a").unwrap(), Some(Policy::default()), "after {cut} bytes");
        }
        let text = r#"{"version":2,"policy":{}}"#;
        fs::write(&path, format!("{}\n{text}", checksum(text.as_bytes()))).unwrap();
        assert!(store.live_policy("pods", "a").unwrap_err().to_string().contains("version 2"));
    }
}
