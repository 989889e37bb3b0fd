//! Which processors and memory nodes of this host a sandbox may use (cpuset(7)).

use std::fmt;
use std::str::FromStr;

use oci_spec::runtime::{LinuxCpu, LinuxResources};

/// Numbers from 0 on in the list format of cpuset(7), such as `0-1,3`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberList(Vec<(u32, u32)>);

/// A text is no such list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list such as 0-1,3")]
pub struct NumberListError(String);

impl FromStr for NumberList {
    type Err = NumberListError;

    fn from_str(text: &str) -> Result<Self, NumberListError> {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let range = |text: &str| {
            let (begin, end) = text.split_once('-').unwrap_or((text, text));
            Some((number(begin)?, number(end)?)).filter(|(begin, end)| begin <= end)
        };
        let ranges = text.split(',').map(range).collect::<Option<Vec<_>>>();
        ranges.map(Self).ok_or_else(|| NumberListError(text.to_owned()))
    }
}

impl fmt::Display for NumberList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (begin, end)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if begin == end {
                write!(f, "{comma}{begin}")?;
            } else {
                write!(f, "{comma}{begin}-{end}")?;
            }
        }
        Ok(())
    }
}

impl NumberList {
    /// The highest number in it.
    pub fn highest(&self) -> u32 {
        self.0.iter().map(|(_, end)| *end).max().unwrap_or_default()
    }

    /// All that is in either.
    #[must_use]
    fn union(&self, other: &Self) -> Self {
        let mut ranges = [self.0.as_slice(), &other.0].concat();
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::new();
        for (begin, end) in ranges {
            match merged.last_mut() {
                Some((_, last)) if begin <= last.saturating_add(1) => *last = end.max(*last),
                _ => merged.push((begin, end)),
            }
        }
        Self(merged)
    }
}

/// Processors and memory nodes of this host. None of a kind is all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSets {
    /// Processors.
    pub processors: Option<NumberList>,
    /// Memory nodes.
    pub nodes: Option<NumberList>,
}

impl HostSets {
    /// Takes them out of a container's limits.
    pub fn take(resources: &mut LinuxResources) -> Result<Self, NumberListError> {
        let mut sets = Self::default();
        if let Some(cpu) = resources.cpu().clone() {
            sets.processors = list(cpu.cpus().as_deref())?;
            sets.nodes = list(cpu.mems().as_deref())?;
            let mut rest = cpu;
            rest.set_cpus(None).set_mems(None);
            resources.set_cpu(Some(rest).filter(|rest| *rest != LinuxCpu::default()));
        }
        if let Some(mut unified) = resources.unified().clone() {
            let mut take = |name| list(unified.remove(name).as_deref());
            let (processors, nodes) = (take("cpuset.cpus")?, take("cpuset.mems")?);
            sets = sets.changed_by(Self { processors, nodes });
            resources.set_unified(Some(unified).filter(|unified| !unified.is_empty()));
        }
        Ok(sets)
    }

    /// These after a change, of which nothing is named that stays.
    #[must_use]
    pub fn changed_by(self, change: Self) -> Self {
        Self { processors: change.processors.or(self.processors), nodes: change.nodes.or(self.nodes) }
    }

    /// What all of them need together: everything, if one may use everything or there is none.
    pub fn of_all<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let either = |one: &Option<NumberList>, other: &Option<NumberList>| {
            one.as_ref().zip(other.as_ref()).map(|(one, other)| one.union(other))
        };
        let both = |one: Self, other: Self| Self {
            processors: either(&one.processors, &other.processors),
            nodes: either(&one.nodes, &other.nodes),
        };
        all.into_iter().cloned().reduce(both).unwrap_or_default()
    }
}

/// Nothing is said by an empty one.
fn list(text: Option<&str>) -> Result<Option<NumberList>, NumberListError> {
    text.filter(|text| !text.trim().is_empty()).map(str::parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(processors: &str, nodes: &str) -> HostSets {
        HostSets { processors: list(Some(processors)).unwrap(), nodes: list(Some(nodes)).unwrap() }
    }

    #[test]
    fn lists_are_read_as_the_kernel_does() {
        for (text, shown, highest) in
            [("0", "0", 0), ("0-1", "0-1", 1), (" 2 - 4 ", "2-4", 4), ("3,0-1\n", "3,0-1", 3)]
        {
            let list: NumberList = text.parse().unwrap();
            assert_eq!((list.to_string().as_str(), list.highest()), (shown, highest));
        }
        for text in ["", "all", "1-0", "0,", "-1", "0-", "4294967296"] {
            assert!(text.parse::<NumberList>().unwrap_err().to_string().contains(text), "{text:?}");
        }
    }

    #[test]
    fn what_a_pod_needs_is_what_its_containers_need_together() {
        let all = |list: &[HostSets]| HostSets::of_all(list);
        assert_eq!(all(&[sets("4-5", "0"), sets("0,6", "0")]), sets("0,4-6", "0"));
        assert_eq!(all(&[sets("0-7", "0"), sets("2-3,9", "1")]), sets("0-7,9", "0-1"));
        assert_eq!(all(&[sets("0-4294967295", ""), sets("1", "")]), sets("0-4294967295", ""));
        assert_eq!(all(&[sets("1", "0"), sets("", "0")]), sets("", "0"));
        assert_eq!(all(&[]), HostSets::default());
        assert_eq!(sets("1", "0").changed_by(sets("2", "")), sets("2", "0"));
    }

    #[test]
    fn they_are_taken_out_of_limits() {
        let take = |text: &str| {
            let mut resources: LinuxResources = serde_json::from_str(text).unwrap();
            let sets = HostSets::take(&mut resources).unwrap();
            (sets, serde_json::to_string(&resources).unwrap())
        };
        let text = r#"{"cpu":{"shares":2,"cpus":"6-7","mems":"1"}}"#;
        assert_eq!(take(text), (sets("6-7", "1"), r#"{"cpu":{"shares":2}}"#.to_owned()));
        let text = r#"{"cpu":{"cpus":"6"},"unified":{"cpuset.mems":"1"}}"#;
        assert_eq!(take(text), (sets("6", "1"), "{}".to_owned()));
        let text = r#"{"unified":{"cpuset.cpus":"9","memory.high":"1"}}"#;
        assert_eq!(take(text), (sets("9", ""), r#"{"unified":{"memory.high":"1"}}"#.to_owned()));
        let text = r#"{"cpu":{"cpus":""}}"#;
        assert_eq!(take(text).0, HostSets::default());
        let mut nonsense: LinuxResources = serde_json::from_str(r#"{"cpu":{"cpus":"x"}}"#).unwrap();
        assert!(HostSets::take(&mut nonsense).is_err());
    }
}
