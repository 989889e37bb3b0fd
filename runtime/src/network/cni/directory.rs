//! The directories of network configurations.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{CniError, NetworkList};

/// A configuration is a page or two.
const MOST_BYTES: u64 = 1 << 20;

/// The network called `name`. Of two files that have it, the first counts, by directory and then by file name.
pub fn find(dirs: &[PathBuf], name: &str) -> Result<NetworkList, CniError> {
    let mut broken = None;
    for path in files(dirs)? {
        match read(&path) {
            Ok(list) if list.name() == name => return Ok(list),
            Ok(_) => {}
            // It may be the one: that is told if no other is.
            Err(error) => broken = broken.or(Some(error)),
        }
    }
    if let Some(error) = broken {
        tracing::warn!("{error}");
    }
    Err(CniError::NoNetwork { name: name.to_owned(), dirs: dirs.to_vec() })
}

/// The network of the first file, as other runtimes choose it. None if there is no file.
pub fn first(dirs: &[PathBuf]) -> Result<Option<NetworkList>, CniError> {
    files(dirs)?.first().map(|path| read(path)).transpose()
}

/// Every configuration, in the order in which they count.
fn files(dirs: &[PathBuf]) -> Result<Vec<PathBuf>, CniError> {
    let mut all = Vec::new();
    for dir in dirs {
        let failed = |source| CniError::Read { path: dir.clone(), source };
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let known = path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json");
            if known && path.is_file() {
                found.push(path);
            }
        }
        found.sort();
        all.append(&mut found);
    }
    Ok(all)
}

fn read(path: &Path) -> Result<NetworkList, CniError> {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut text));
    let failed = |source| CniError::Read { path: path.to_owned(), source };
    read.map_err(failed)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(failed(std::io::Error::other(format!("larger than {MOST_BYTES} bytes"))));
    }
    NetworkList::parse(&text).map_err(|source| CniError::List { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_by_directory_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("none"), dir.path().join("a"), dir.path().join("b")];
        assert_eq!(first(&dirs).unwrap(), None);
        let write = |file: &str, name: &str| {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"t-{name}"}}"#))
                .unwrap();
        };
        write("b/00.conf", "late");
        write("a/20.conflist", "second");
        write("a/10.json", "first");
        write("a/05.txt", "ignored");
        assert_eq!(first(&dirs).unwrap().unwrap().name(), "first");
        assert_eq!(find(&dirs, "late").unwrap().name(), "late");
        let error = find(&dirs, "ignored").unwrap_err().to_string();
        assert!(
            error.starts_with("there is no CNI network ignored in ") && error.contains("/a, "),
            "{error}"
        );
        // One that cannot be read hides no other, but is not passed over as the first.
        std::fs::write(dir.path().join("a/01.conf"), "{").unwrap();
        assert_eq!(find(&dirs, "second").unwrap().name(), "second");
        assert!(first(&dirs).unwrap_err().to_string().contains("a/01.conf: "));
    }
}
