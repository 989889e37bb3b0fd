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
}

impl Target {
    pub(super) fn parse(stream: &'static str, uri: &str) -> Result<Self, StdioError> {
        if uri.is_empty() {
            return Ok(Self::None);
        }
        let (scheme, path) = uri.split_once("://").unwrap_or(("fifo", uri));
        let bad_path = || StdioError::Path { stream, uri: uri.to_owned() };
        let target = match scheme {
            "fifo" => Self::Fifo(path.into()),
            // A URI's path ends where its query begins.
            "file" => Self::File(path.split('?').next().unwrap_or(path).into()),
            _ => {
                return Err(StdioError::Scheme { stream, uri: uri.to_owned(), scheme: scheme.to_owned() });
            }
        };
        match &target {
            Self::Fifo(path) | Self::File(path) if !path.is_absolute() => Err(bad_path()),
            _ => Ok(target),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes() {
        assert_eq!(Target::parse("stdin", "").unwrap(), Target::None);
        assert_eq!(Target::parse("stdout", "/run/f/out").unwrap(), Target::Fifo("/run/f/out".into()));
        assert_eq!(Target::parse("stdout", "fifo:///run/f").unwrap(), Target::Fifo("/run/f".into()));
        assert_eq!(
            Target::parse("stdout", "file:///var/log/x?a=b").unwrap(),
            Target::File("/var/log/x".into())
        );
        let error = Target::parse("stdout", "binary:///usr/bin/logger?a=b").unwrap_err().to_string();
        assert!(error.contains("stdout") && error.contains("binary"), "{error}");
        assert!(Target::parse("stderr", "relative").is_err());
        assert!(Target::parse("stderr", "file://").is_err());
    }
}
