//! Ethernet addresses, and how ours are derived.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// Why a text is no Ethernet address we can give to an interface.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MacError {
    /// Not six hexadecimal octets.
    #[error("`{0}` is not an Ethernet address (six octets in hexadecimal, colons between)")]
    Malformed(String),
    /// A group address, or all zero: no interface can have it.
    #[error("`{0}` is not the address of one interface (group bit set, or all zero)")]
    NotUnicast(String),
}

impl Mac {
    /// An address derived from `parts`: the same parts give the same address on every host and after every
    /// restart. Locally administered, unicast; 46 bits of SHA-256.
    pub fn derive(parts: &[&str]) -> Self {
        let digest = digest(parts);
        let mut octets = [0; 6];
        octets.copy_from_slice(&digest[..6]);
        octets[0] = octets[0] & 0xfc | 0x02;
        Self(octets)
    }

    /// The link-local address that EUI-64 makes of this one (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfe, 0x80]);
        octets[8..11].copy_from_slice(&self.0[..3]);
        octets[11..13].copy_from_slice(&[0xff, 0xfe]);
        octets[13..].copy_from_slice(&self.0[3..]);
        octets[8] ^= 0x02;
        Ipv6Addr::from(octets)
    }
}

/// Unicast addresses that are valid on one link (RFC 4291, section 2.5.6).
pub(crate) fn link_local_net() -> IpNet {
    IpNet::V6(Ipv6Net::new_assert([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10))
}

/// Whether it is one of those.
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// SHA-256 over `parts`, each ended by a zero byte so that no two lists of parts collide by joining.
pub(crate) fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// The first `octets` bytes of [`digest`] in hexadecimal.
pub(crate) fn digest_hex(parts: &[&str], octets: usize) -> String {
    use fmt::Write as _;
    digest(parts).iter().take(octets).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, octet) in self.0.iter().enumerate() {
            let colon = if n > 0 { ":" } else { "" };
            write!(f, "{colon}{octet:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let malformed = || MacError::Malformed(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(malformed)?;
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        if octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(MacError::NotUnicast(text.to_owned()));
        }
        Ok(Self(octets))
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_addresses_are_stable_unicast_and_local() {
        let mac = Mac::derive(&["net", "container", "eth0"]);
        assert_eq!(mac, Mac::derive(&["net", "container", "eth0"]));
        assert_ne!(mac, Mac::derive(&["net", "containere", "th0"]));
        assert_eq!(mac.0[0] & 3, 2);
    }

    #[test]
    fn text_round_trips() {
        let mac: Mac = "02:ab:00:ff:10:09".parse().unwrap();
        assert_eq!(mac.to_string(), "02:ab:00:ff:10:09");
        for bad in [
            "",
            "02:ab:00:ff:10",
            "02:ab:00:ff:10:09:01",
            "2:ab:00:ff:10:09",
            "zz:ab:00:ff:10:09",
            "+2:ab:00:ff:10:09",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(MacError::Malformed(bad.to_owned())));
        }
        for bad in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(bad.parse::<Mac>(), Err(MacError::NotUnicast(bad.to_owned())));
        }
    }

    #[test]
    fn link_local_is_eui_64() {
        let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac.link_local(), "fe80::5054:ff:fe12:3456".parse::<Ipv6Addr>().unwrap());
    }
}
