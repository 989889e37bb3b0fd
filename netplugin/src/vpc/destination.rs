//! Where ssh finds a node.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{DeclarationError, wrong};

/// `user@host`, `host` or `ssh://user@host:port`, of characters that neither ssh nor a shell takes for anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshDestination(String);

impl FromStr for SshDestination {
    type Err = DeclarationError;

    fn from_str(text: &str) -> Result<Self, DeclarationError> {
        let bad = |why: &str| wrong("ssh", format!("`{}` {why}", text.escape_debug()));
        let plain = text.strip_prefix("ssh://").unwrap_or(text);
        // What ssh would read as an option, or hand to a ProxyCommand's shell, has no place here.
        let part = |part: &str, more: &[u8]| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '[' | ':'))
                && part.bytes().all(|c| {
                    c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-') || more.contains(&c)
                })
        };
        if text.len() > 255 {
            return Err(bad("is longer than 255 bytes"));
        }
        let (user, host) = match plain.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, plain),
        };
        if user.is_some_and(|user| !part(user, b"")) || !part(host, b":[]%") {
            return Err(bad("is not USER@HOST, HOST or ssh://USER@HOST:PORT"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for SshDestination {
    type Error = DeclarationError;

    fn try_from(text: String) -> Result<Self, DeclarationError> {
        text.parse()
    }
}

impl From<SshDestination> for String {
    fn from(destination: SshDestination) -> Self {
        destination.0
    }
}

impl fmt::Display for SshDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_cannot_be_options_or_commands() {
        for good in
            ["host", "root@host.example", "root@192.0.2.1", "root@2001:db8::1", "ssh://a@b:22", "_x@h"]
        {
            good.parse::<SshDestination>().unwrap();
        }
        for bad in
            ["", "-oX", "a@-x", "-a@x", "a b", "a;b", "$(x)", "a@b`x`", "ssh://-x", "a'b", "a\nb", "a@b/c"]
        {
            assert!(bad.parse::<SshDestination>().is_err(), "{bad}");
        }
    }
}
