//! What pfctl(8) lists. No input or output.

use super::tree::ROOT;

/// What the references have that we put into the main ruleset ourselves, so that we know which to take out.
pub(in super::super) const REFERENCE_LABEL: &str = "skep-cni";

/// The numbers of our own references in what `pfctl -vvs` prints of a list.
pub(in super::super) fn own_references(listing: &str) -> Vec<u32> {
    let own = |line: &str| {
        let (number, rule) = line.strip_prefix('@')?.split_once(' ')?;
        let ours = rule.contains(&format!("anchor \"{ROOT}\" all"))
            && rule.contains(&format!("label \"{REFERENCE_LABEL}\""));
        ours.then(|| number.parse().ok()).flatten()
    };
    listing.lines().filter_map(own).collect()
}

/// Whether the lists that `pfctl -s nat` and `pfctl -s rules` print have our references: translation's two, and the
/// filter's.
pub(in super::super) fn referenced(nat: &str, rules: &str) -> [bool; 3] {
    let has = |list: &str, kind: &str| {
        let wanted = format!("{kind} \"{ROOT}\" all");
        let labelled = format!("{wanted} label \"{REFERENCE_LABEL}\"");
        list.lines().map(str::trim).any(|line| line == wanted || line == labelled)
    };
    [has(nat, "nat-anchor"), has(nat, "rdr-anchor"), has(rules, "anchor")]
}

/// The packets that rules with a label stopped, by what `pfctl -s labels` prints: label, evaluations, packets, ...
pub(in super::super) fn counted(listing: &str, label: &str) -> u64 {
    let lines = listing.lines().filter_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
    lines.filter_map(|rest| rest.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_recognised_whole() {
        assert_eq!(
            referenced("nat-anchor \"skep\" all\nrdr-anchor \"skep\" all\n", "anchor \"skep\" all\n"),
            [true; 3]
        );
        assert_eq!(
            referenced("nat-anchor \"skep2\" all\n", "anchor \"skep/x\" all\nanchor \"x\" all {\n"),
            [false; 3]
        );
    }
}
