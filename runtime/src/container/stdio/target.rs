//! What a caller names as a standard stream.

use std::path::PathBuf;

use super::StdioError;

/// One standard stream as named by the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Target {
    /// Nothing: input is at its end, output is thrown away.
    #[default]
    None,
    /// A FIFO, or if the path leads to something else, that.
    Fifo(PathBuf),
    /// A file that output is appended to.
    File(PathBuf),
    /// A program that is given both outputs.
    Logger(LoggerCommand),
    /// A stream that a client of the shim's streaming service connects to by this name.
    Stream(String),
}

/// A program that writes down what a container says: `binary://` and `binary-v2://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggerCommand {
    /// Its path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Whether it says that it is ready by a byte (`binary-v2`), and not by closing the descriptor alone.
    pub says_ready: bool,
}

impl Target {
    pub(super) fn parse(stream: &'static str, uri: &str) -> Result<Self, StdioError> {
        if uri.is_empty() {
            return Ok(Self::None);
        }
        let (scheme, rest) = uri.split_once("://").unwrap_or(("fifo", uri));
        if scheme == "fifo" {
            return absolute(stream, uri, rest.into()).map(Self::Fifo);
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = || absolute(stream, uri, decode(path).into());
        match scheme {
            "file" => path().map(Self::File),
            "binary" | "binary-v2" if stream == "stdin" => Err(StdioError::Unfit {
                stream,
                uri: uri.to_owned(),
                reason: "a logger reads: it can't be read from",
            }),
            "binary" | "binary-v2" => Ok(Self::Logger(LoggerCommand {
                program: path()?,
                arguments: arguments(query),
                says_ready: scheme == "binary-v2",
            })),
            "ttrpc+unix" => match value(query, "streaming_id").filter(|id| !id.is_empty()) {
                Some(id) => Ok(Self::Stream(id)),
                None => Err(StdioError::Unfit {
                    stream,
                    uri: uri.to_owned(),
                    reason: "its query has no streaming_id",
                }),
            },
            _ => Err(StdioError::Scheme { stream, uri: uri.to_owned(), scheme: scheme.to_owned() }),
        }
    }
}

fn absolute(stream: &'static str, uri: &str, path: PathBuf) -> Result<PathBuf, StdioError> {
    if path.is_absolute() { Ok(path) } else { Err(StdioError::Path { stream, uri: uri.to_owned() }) }
}

/// A URI's path without its escapes.
fn decode(path: &str) -> String {
    percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned()
}

/// A logger's arguments as containerd's own shim makes them of the query: each name once, followed by its first value.
fn arguments(query: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut arguments = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !names.contains(&name) {
            arguments.extend([name.to_string(), value.into_owned()]);
            names.push(name);
        }
    }
    arguments
}

fn value(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes() {
        let parse = |uri| Target::parse("stdout", uri);
        assert_eq!(parse("").unwrap(), Target::None);
        assert_eq!(parse("/run/f/o%20ut").unwrap(), Target::Fifo("/run/f/o%20ut".into()));
        assert_eq!(parse("fifo:///run/f").unwrap(), Target::Fifo("/run/f".into()));
        assert_eq!(parse("file:///var/log/a%20b?a=b").unwrap(), Target::File("/var/log/a b".into()));
        let id = "ttrpc+unix:///run/s.sock?streaming_id=c1-stdout";
        assert_eq!(parse(id).unwrap(), Target::Stream("c1-stdout".into()));
        for unfit in ["relative", "file://", "file://host/path", "binary://", "ttrpc+unix:///run/s.sock"] {
            assert!(parse(unfit).unwrap_err().to_string().contains(unfit), "{unfit}");
        }
        let error = parse("npipe:////./pipe/x").unwrap_err().to_string();
        assert!(error.contains("stdout") && error.contains("npipe"), "{error}");
        assert!(Target::parse("stdin", "binary:///bin/cat").is_err());
    }

    #[test]
    fn loggers_are_given_arguments_as_by_runcs_shim() {
        let logger = |uri| match Target::parse("stdout", uri).unwrap() {
            Target::Logger(logger) => logger,
            other => panic!("{other:?}"),
        };
        let expected = LoggerCommand {
            program: "/usr/bin/log ger".into(),
            arguments: ["-c", "a b", "flag", ""].map(String::from).into(),
            says_ready: false,
        };
        assert_eq!(logger("binary:///usr/bin/log%20ger?-c=a+b&flag&-c=ignored"), expected);
        let strict = logger("binary-v2:///usr/bin/x");
        assert!(strict.says_ready && strict.arguments.is_empty());
    }
}
