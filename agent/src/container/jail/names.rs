//! How things of a container are called.

use std::path::{Path, PathBuf};

/// A link to the container's root, in the bundle.
pub(crate) const ROOT: &str = "root";
/// The socket on which init waits to be started.
pub(crate) const START: &str = "start.sock";

/// The name of the container's jail. It has no dots, which stand for jails within jails, and no colons, which rctl(8)
/// has between its words; it is no number; and an id has no plus.
pub(crate) fn group(id: &str) -> PathBuf {
    PathBuf::from(format!("skep+{}", id.replace('.', "+")))
}

/// A jail is found by its name.
pub(crate) fn group_dir(group: &Path) -> PathBuf {
    group.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_mean_nothing_else() {
        assert_ne!(group("a.b"), group("a-b"));
        assert!(!group("1.2").to_string_lossy().contains(['.', ':']));
    }
}
