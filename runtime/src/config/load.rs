//! Finding and reading the file, and telling what is wrong with it.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::Config;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The text is not what it should be.
    #[error("{origin}:{line}: {}{message}", key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default())]
    Parse {
        /// The file, or whatever the caller named the text.
        origin: String,
        /// Counted from 1.
        line: usize,
        /// The key in question with its tables, where there is one.
        key: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// Two keys do not fit together.
    #[error("{origin}: {key}: {message}")]
    Conflict {
        /// The file, or whatever the caller named the text.
        origin: String,
        /// The key that would have to change.
        key: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// Environment variable that names the file.
const VARIABLE: &str = "SKEP_CONFIG";

/// A configuration is a page or two; more is a mistake.
const MOST_BYTES: u64 = 1 << 20;

impl Config {
    /// Reads the file at `path`, or that which `$SKEP_CONFIG` names, or the system's if there is one; else the defaults
    /// hold. A file that is named must exist.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let named = path.map(Path::to_owned).or_else(Self::named);
        match named {
            Some(path) => Self::read(&path),
            None => match Self::read(Self::system_path()) {
                Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    Ok(Self::default())
                }
                other => other,
            },
        }
    }

    /// The file that `$SKEP_CONFIG` names.
    pub fn named() -> Option<PathBuf> {
        std::env::var_os(VARIABLE).map(PathBuf::from)
    }

    /// Where the system's file is, if there is one.
    pub fn system_path() -> &'static Path {
        Path::new(if cfg!(target_os = "freebsd") {
            "/usr/local/etc/skep/config.toml"
        } else {
            "/etc/skep/config.toml"
        })
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        use std::io::Read as _;

        let read = || {
            let mut text = String::new();
            std::fs::File::open(path)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
            if text.len() as u64 > MOST_BYTES {
                return Err(std::io::Error::other(format!("larger than {MOST_BYTES} bytes")));
            }
            Ok(text)
        };
        let text = read().map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads `text`; `origin` says in errors where it came from.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start);
            ConfigError::Parse {
                origin: origin.to_owned(),
                line: 1 + text
                    .char_indices()
                    .take_while(|(i, _)| *i < at)
                    .filter(|(_, c)| *c == '\n')
                    .count(),
                key: key_at(text, at),
                message: e.message().replace('\n', ", "),
            }
        })?;
        config.check().map_err(|(key, message)| ConfigError::Conflict {
            origin: origin.to_owned(),
            key,
            message,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { sandbox, guest, .. } = self;
        if sandbox.vcpus > sandbox.max_vcpus {
            let message = format!("{} is more than sandbox.max_vcpus, {}", sandbox.vcpus, sandbox.max_vcpus);
            return Err(("sandbox.vcpus", message));
        }
        if sandbox.memory_mib > sandbox.max_memory_mib {
            let message = format!(
                "{} is more than sandbox.max_memory_mib, {}",
                sandbox.memory_mib, sandbox.max_memory_mib
            );
            return Err(("sandbox.memory_mib", message));
        }
        if !guest.dir.is_absolute() {
            return Err(("guest.dir", format!("`{}` is not an absolute path", guest.dir.display())));
        }
        Ok(())
    }
}

/// The dotted name of the key whose name or value stands at byte `at`.
fn key_at(text: &str, at: usize) -> Option<String> {
    fn search(table: &DeTable<'_>, at: usize, path: &mut Vec<String>) -> bool {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            if key.span().contains(&at) {
                return true;
            }
            // A table's span is its header's, so look into every table.
            if let DeValue::Table(inner) = value.get_ref()
                && search(inner, at, path)
            {
                return true;
            }
            if value.span().contains(&at) {
                return true;
            }
            path.pop();
        }
        false
    }

    let document = DeTable::parse(text).ok()?;
    let mut path = Vec::new();
    search(document.get_ref(), at, &mut path).then(|| path.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AccelChoice, Channel, HypervisorKind, RootfsMode};

    fn error(text: &str) -> String {
        Config::parse(text, "config.toml").unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(Config::parse("", "x").unwrap(), Config::default());
    }

    #[test]
    fn keys_are_read() {
        let text = "state_dir = '/tmp/s'\nhypervisor = 'qemu'\n[qemu]\naccel = 'tcg'\n[container]\nrootfs = 'overlay'\n\
                    [agent]\nchannel = 'vsock'\n[timeouts]\nboot_s = 7\n";
        let config = Config::parse(text, "x").unwrap();
        assert_eq!(&*config.state_dir, Path::new("/tmp/s"));
        assert_eq!(config.hypervisor, HypervisorKind::Qemu);
        assert_eq!(config.qemu.accel, AccelChoice::Tcg);
        assert_eq!(config.container.rootfs, RootfsMode::Overlay);
        assert_eq!(config.agent.channel, Channel::Vsock);
        assert_eq!(config.timeouts.boot_s.duration().as_secs(), 7);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let cases = [
            ("\nfoo = 1\n", "config.toml:2: foo: unknown field `foo`"),
            ("[sandbox]\nvcpus = 1\nvcpu = 2\n", "config.toml:3: sandbox.vcpu: unknown field `vcpu`"),
            ("[sandbox]\n\nvcpus = 0\n", "config.toml:3: sandbox.vcpus: 0 virtual CPUs"),
            ("sandbox = { vcpus = 99 }", "config.toml:1: sandbox.vcpus: 99 virtual CPUs"),
            ("[sandbox]\nmemory_mib = '1'", "config.toml:2: sandbox.memory_mib: invalid type"),
            ("[sandbox]\nmemory_mib = -1", "config.toml:2: sandbox.memory_mib: invalid value"),
            ("[qemu]\naccel = 'hax'", "config.toml:2: qemu.accel: unknown variant `hax`"),
            ("[qemo]\n", "config.toml:1: qemo: unknown field `qemo`"),
            ("state_dir = 'x'", "config.toml:1: state_dir: `x` is not an absolute path"),
            ("a = \n", "config.toml:1: "),
        ];
        for (text, start) in cases {
            assert!(error(text).starts_with(start), "{text:?}: {}", error(text));
        }
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        assert!(error("[sandbox]\nvcpus = 3\nmax_vcpus = 2").contains("sandbox.vcpus: 3 is more"));
        assert!(
            error("[sandbox]\nmemory_mib = 256\nmax_memory_mib = 128").contains("sandbox.memory_mib: 256")
        );
        assert!(error("[guest]\ndir = 'guest'").contains("guest.dir"));
    }

    #[test]
    fn a_file_that_is_named_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/skep.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/skep.toml"));
    }

    /// The example documents every key, with its default, and nothing else.
    #[test]
    fn the_example_lists_every_key() {
        fn keys(value: &serde_json::Value, prefix: &str, into: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(map) => {
                    for (key, inner) in map {
                        keys(inner, &format!("{prefix}.{key}"), into);
                    }
                }
                _ => into.push(prefix.trim_start_matches('.').to_owned()),
            }
        }
        let text = include_str!("../../../packaging/config.toml");
        let parsed = Config::parse(text, "packaging/config.toml").unwrap();
        let mut want = Vec::new();
        keys(&serde_json::to_value(Config::default()).unwrap(), "", &mut want);
        let mut have = Vec::new();
        keys(&serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap(), "", &mut have);
        want.sort();
        have.sort();
        assert_eq!(have, want);
        if cfg!(target_os = "linux") {
            assert_eq!(parsed, Config::default(), "the example shows the defaults of Linux");
        }
        // Each key has a comment of its own above it.
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(i > 0 && lines[i - 1].starts_with('#'), "no comment above: {line}");
            }
        }
    }
}
