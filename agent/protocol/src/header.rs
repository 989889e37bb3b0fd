//! The line with which each stream of the mux begins.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest header line, its newline included.
pub const MAX_HEADER: usize = 64;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// `ttrpc <version>`: the calls. The first stream of a session, and the only one of its kind.
    Ttrpc {
        /// Version of the calls, see [`crate::PROTOCOL_VERSION`].
        version: u32,
    },
    /// `stdio <token>`: bytes of a process, named in a call by the token, which is never 0.
    Stdio {
        /// The token that the host drew, in decimal.
        token: u64,
    },
}

/// Why a stream has no usable header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// No newline within [`MAX_HEADER`] bytes.
    #[error("stream header is longer than {MAX_HEADER} bytes")]
    TooLong,
    /// The line is no header this version knows.
    #[error("unknown stream header {0:?}")]
    Unknown(String),
    /// The stream ended or broke.
    #[error("stream ended within its header: {0}")]
    Io(#[from] std::io::Error),
}

impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ttrpc { version } => write!(f, "ttrpc {version}"),
            Self::Stdio { token } => write!(f, "stdio {token}"),
        }
    }
}

impl Header {
    /// The line as it goes over the wire, newline included.
    pub fn to_line(self) -> String {
        format!("{self}\n")
    }

    /// Parses a line without its newline. Only what [`Header::to_line`] writes is accepted.
    pub fn parse(line: &[u8]) -> Result<Self, HeaderError> {
        let unknown = || HeaderError::Unknown(String::from_utf8_lossy(line).into_owned());
        let text = std::str::from_utf8(line).map_err(|_| unknown())?;
        let header = match text.split_once(' ') {
            Some(("ttrpc", version)) => Self::Ttrpc { version: version.parse().map_err(|_| unknown())? },
            Some(("stdio", token)) => Self::Stdio { token: token.parse().map_err(|_| unknown())? },
            _ => return Err(unknown()),
        };
        // One spelling each: no sign, no leading zero, and no token 0, which stands for "no stream" in calls.
        if header.to_string() == text && header != (Self::Stdio { token: 0 }) {
            Ok(header)
        } else {
            Err(unknown())
        }
    }

    /// Reads a header from the start of a stream and not one byte more.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Self, HeaderError> {
        Self::parse(&read_line(stream, MAX_HEADER).await?)
    }
}

/// Reads up to a newline, which is dropped; `max` counts it.
pub(crate) async fn read_line(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Vec<u8>, HeaderError> {
    let mut line = Vec::with_capacity(max);
    while line.len() < max {
        match stream.read_u8().await? {
            b'\n' => return Ok(line),
            byte => line.push(byte),
        }
    }
    Err(HeaderError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_spelling_each() {
        for good in ["ttrpc 1", "stdio 1", "stdio 18446744073709551615", "ttrpc 0"] {
            assert_eq!(Header::parse(good.as_bytes()).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "ttrpc",
            "ttrpc ",
            "ttrpc +1",
            "ttrpc 01",
            "ttrpc 1 ",
            "stdio 0",
            "stdio -1",
            "stdio 1\r",
            "stdio 18446744073709551616",
            "ttrpc 4294967296",
            "STDIO 1",
            "port 1",
            "stdio 1 2",
            "\u{fffd} 1",
        ] {
            assert!(matches!(Header::parse(bad.as_bytes()), Err(HeaderError::Unknown(_))), "{bad:?}");
        }
        assert!(matches!(Header::parse(b"stdio \xff"), Err(HeaderError::Unknown(_))));
    }

    #[tokio::test]
    async fn reads_no_byte_too_many() {
        let mut stream: &[u8] = b"stdio 7\nrest";
        assert_eq!(Header::read(&mut stream).await.unwrap(), Header::Stdio { token: 7 });
        assert_eq!(stream, b"rest");
    }

    #[tokio::test]
    async fn bounds_what_it_reads() {
        let endless = [b'x'; 1000];
        let mut stream: &[u8] = &endless;
        assert!(matches!(Header::read(&mut stream).await, Err(HeaderError::TooLong)));
        assert_eq!(stream.len(), 1000 - MAX_HEADER);
        assert!(matches!(Header::read(&mut &b"stdio 7"[..]).await, Err(HeaderError::Io(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_back(line in proptest::collection::vec(any::<u8>(), 0..MAX_HEADER)) {
            if let Ok(header) = Header::parse(&line) {
                prop_assert_eq!(header.to_string().into_bytes(), line);
            }
        }
    }
}
