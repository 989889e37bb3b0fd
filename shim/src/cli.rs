//! The command line that containerd uses: Go's flag package, then one action.

use std::path::PathBuf;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the shim of a container, or find that of its pod.
    Start,
    /// Clean up after a shim that is gone.
    Delete,
    /// Be the shim: `start` runs this with the listening socket as standard input.
    Serve,
    /// Say what this shim is, for containerd.
    Info,
    /// Say which version this is, for people.
    Version,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Args {
    /// `-namespace`: containerd's namespace.
    pub(crate) namespace: String,
    /// `-id`: the container or sandbox.
    pub(crate) id: String,
    /// `-address`: containerd's gRPC socket.
    pub(crate) address: String,
    /// `-bundle`: the bundle's directory; the working directory if not given.
    pub(crate) bundle: Option<PathBuf>,
    /// `-debug`.
    pub(crate) debug: bool,
}

/// The command line makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    /// No such flag.
    #[error("unknown flag -{0}")]
    UnknownFlag(String),
    /// A flag without its value.
    #[error("flag -{0} needs a value")]
    NoValue(String),
    /// A switch with a value that is none.
    #[error("flag -{flag}: {value} is neither true nor false")]
    NotBoolean {
        /// The flag.
        flag: String,
        /// Its value.
        value: String,
    },
    /// Not UTF-8.
    #[error("argument {0} is not UTF-8")]
    NotUtf8(usize),
    /// No such action.
    #[error("unknown action {0}: containerd runs this with start or delete")]
    UnknownAction(String),
    /// Nothing to do.
    #[error("no action: containerd runs this with start or delete")]
    NoAction,
    /// More after the action.
    #[error("unexpected argument {0} after the action")]
    Unexpected(String),
    /// A flag that the action needs.
    #[error("flag -{0} is missing")]
    Missing(&'static str),
    /// A value that can't be.
    #[error("flag -{flag}: {value:?} is not a name as containerd makes them: {reason}")]
    Identifier {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Reads a command line without the program's name.
pub(crate) fn parse(
    words: impl IntoIterator<Item = std::ffi::OsString>,
) -> Result<(Action, Args), ArgsError> {
    let mut args = Args::default();
    let mut shortcut = None;
    let mut words = words
        .into_iter()
        .enumerate()
        .map(|(number, word)| word.into_string().map_err(|_| ArgsError::NotUtf8(number + 1)));
    let mut action = None;
    while let Some(word) = words.next() {
        let word = word?;
        let Some((flag, given)) = split(&word) else {
            // Flags end at the first word that is none.
            action = Some(word);
            break;
        };
        let switch = || match given {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(value) => Err(ArgsError::NotBoolean { flag: flag.to_owned(), value: value.to_owned() }),
        };
        match flag {
            "debug" => args.debug = switch()?,
            "v" if switch()? => shortcut = Some(Action::Version),
            "info" if switch()? => shortcut = shortcut.or(Some(Action::Info)),
            "v" | "info" => {}
            "namespace" | "id" | "address" | "publish-binary" | "bundle" | "socket" => {
                let value = match given {
                    Some(value) => value.to_owned(),
                    None => words.next().ok_or_else(|| ArgsError::NoValue(flag.to_owned()))??,
                };
                match flag {
                    "namespace" => args.namespace = value,
                    "id" => args.id = value,
                    "address" => args.address = value,
                    "bundle" => {
                        args.bundle = Some(value.into()).filter(|path: &PathBuf| *path != PathBuf::new());
                    }
                    // Events go to TTRPC_ADDRESS, and the address of the socket is ours to choose.
                    _ => {}
                }
            }
            _ => return Err(ArgsError::UnknownFlag(flag.to_owned())),
        }
    }
    if let Some(action) = shortcut {
        return Ok((action, args));
    }
    let action = match action.as_deref() {
        Some("start") => Action::Start,
        Some("delete") => Action::Delete,
        Some("serve") => Action::Serve,
        Some(other) => return Err(ArgsError::UnknownAction(other.to_owned())),
        None => return Err(ArgsError::NoAction),
    };
    if let Some(word) = words.next() {
        return Err(ArgsError::Unexpected(word?));
    }
    check_identifier("namespace", &args.namespace)?;
    check_identifier("id", &args.id)?;
    Ok((action, args))
}

/// `-flag`, `--flag`, `-flag=value`; nothing for a word that is no flag.
fn split(word: &str) -> Option<(&str, Option<&str>)> {
    let flag = word.strip_prefix('-').filter(|flag| !flag.is_empty())?;
    let flag = flag.strip_prefix('-').unwrap_or(flag);
    Some(match flag.split_once('=') {
        Some((flag, value)) => (flag, Some(value)),
        None => (flag, None),
    })
}

/// containerd's rule (pkg/identifiers): at most 76 characters, letters and digits with single separators between.
/// Ids become parts of paths, so nothing else is taken from anybody.
fn check_identifier(flag: &'static str, value: &str) -> Result<(), ArgsError> {
    let refuse = |reason| Err(ArgsError::Identifier { flag, value: value.to_owned(), reason });
    if value.is_empty() {
        return Err(ArgsError::Missing(flag));
    }
    if value.len() > 76 {
        return refuse("longer than 76 characters");
    }
    if !value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return refuse("only letters, digits, '.', '_' and '-' are");
    }
    if !value.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !value.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        return refuse("it begins and ends with a letter or digit");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<(Action, Args), ArgsError> {
        parse(line.split_whitespace().map(Into::into))
    }

    #[test]
    fn what_containerd_sends() {
        let (action, args) = run(
            "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id t1 -debug start",
        )
        .unwrap();
        assert_eq!(action, Action::Start);
        assert_eq!(
            args,
            Args {
                namespace: "default".into(),
                id: "t1".into(),
                address: "/run/c.sock".into(),
                bundle: None,
                debug: true
            }
        );
        let (action, args) =
            run("-namespace k8s.io -address a -publish-binary b -id x -bundle /b/x delete").unwrap();
        assert_eq!(action, Action::Delete);
        assert_eq!(args.bundle, Some("/b/x".into()));
        assert_eq!(run("-info").unwrap().0, Action::Info);
        assert_eq!(run("-v").unwrap().0, Action::Version);
    }

    #[test]
    fn spellings_of_go() {
        let (_, args) = run("--namespace=a -id=b --debug=false start").unwrap();
        assert_eq!((args.namespace.as_str(), args.id.as_str(), args.debug), ("a", "b", false));
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(run("-nope start"), Err(ArgsError::UnknownFlag("nope".into())));
        assert_eq!(run("-namespace a -id"), Err(ArgsError::NoValue("id".into())));
        assert_eq!(run("-namespace a -id b"), Err(ArgsError::NoAction));
        assert_eq!(run("-namespace a -id b run"), Err(ArgsError::UnknownAction("run".into())));
        assert_eq!(run("-namespace a -id b start x"), Err(ArgsError::Unexpected("x".into())));
        assert_eq!(run("-namespace a start"), Err(ArgsError::Missing("id")));
        assert!(matches!(run("-debug=maybe start"), Err(ArgsError::NotBoolean { .. })));
        for id in ["../x", "a/b", ".hidden", "a-", &"x".repeat(77)] {
            assert!(
                matches!(run(&format!("-namespace a -id {id} start")), Err(ArgsError::Identifier { .. })),
                "{id}"
            );
        }
    }
}
