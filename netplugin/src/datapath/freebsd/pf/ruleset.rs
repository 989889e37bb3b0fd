//! An anchor's rules as pf.conf(5) spells them, and what is in its tables. No input or output.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::datapath::DatapathError;

/// The rules of an anchor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Ruleset {
    /// Where they belong.
    pub(in super::super) anchor: String,
    /// What pfctl(8) reads: one rule a line.
    pub(in super::super) text: String,
    /// The anchor's own tables.
    pub(in super::super) tables: Vec<(String, Vec<IpNet>)>,
}

impl Ruleset {
    /// Empty ones.
    pub(super) fn of(anchor: String) -> Self {
        Self { anchor, ..Self::default() }
    }

    /// How many filter rules there are: of those that are the same, as where a sandbox's own list says what its network's
    /// does, the kernel keeps one.
    pub(in super::super) fn filters(&self) -> usize {
        let rules = self.text.lines().filter(|line| line.starts_with("pass") || line.starts_with("block"));
        rules.collect::<HashSet<&str>>().len()
    }

    /// How many redirections there are.
    pub(in super::super) fn redirections(&self) -> usize {
        self.text.lines().filter(|line| line.starts_with("rdr")).count()
    }

    /// What tells these rules from others, in the form of an address: pf keeps it in a table beside them.
    pub(in super::super) fn digest(&self) -> IpAddr {
        let rules: Vec<&str> = self.text.lines().collect();
        let mut octets = [0; 16];
        for (to, from) in octets.iter_mut().zip(crate::mac::digest(&rules)) {
            *to = from;
        }
        IpAddr::from(octets)
    }

    pub(super) fn line(&mut self, rule: &str) {
        self.text.push_str(rule);
        self.text.push('\n');
    }

    /// A table of the anchor's own. What is in it is the same wherever it is named.
    pub(super) fn table(&mut self, name: &str, nets: Vec<IpNet>) -> String {
        if !self.tables.iter().any(|(known, _)| known == name) {
            // Declared first: pfctl wants tables before rules.
            self.text.insert_str(0, &format!("table <{name}> persist\n"));
            self.tables.push((name.to_owned(), nets));
        }
        format!("<{name}>")
    }
}

pub(super) fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "inet" } else { "inet6" }
}

/// A name that goes into rules must be one word of pf.conf.
pub(in super::super) fn check_name(name: &str) -> Result<(), DatapathError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.chars().all(plain) && name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Ok(());
    }
    Err(DatapathError::Unsupported {
        what: format!("interface name `{name}`"),
        why: "pf rules cannot name it: letters, digits, `_`, `-` and `.` after a letter".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_word_of_a_rule() {
        check_name("skb-pods.1").unwrap();
        check_name("a{b").unwrap_err();
    }
}
