//! Versions of the CNI specification.

use std::fmt;
use std::str::FromStr;

/// A version of the specification that this plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// 0.3.0: results as 0.3.1.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: no `version` in a result's `ips`.
    V1_0_0,
    /// 1.1.0: GC, STATUS, MTU in results.
    V1_1_0,
}

/// A version this plugin does not speak.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cniVersion `{0}` is not supported (0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0 are)")]
pub struct VersionError(pub String);

impl CniVersion {
    /// Every version this plugin speaks, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest of them.
    pub const LATEST: Self = Self::V1_1_0;

    /// The text used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CniVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| VersionError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_round_trip_and_are_ordered() {
        for version in CniVersion::ALL {
            assert_eq!(version.as_str().parse(), Ok(version));
        }
        assert!(CniVersion::ALL.is_sorted());
        assert!("0.2.0".parse::<CniVersion>().is_err());
        assert!("".parse::<CniVersion>().is_err());
    }
}
