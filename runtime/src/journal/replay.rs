//! Reading a journal: pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Entry, EntryId};

/// First line of the file. Another number is another format, which is not read.
pub(super) const HEADER: &str = "{\"skep_journal\":1}\n";

/// One line after the header.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Line {
    /// About to be acquired.
    Acquire {
        /// Its name from here on.
        id: EntryId,
        /// What.
        entry: Entry,
    },
    /// Released.
    Release {
        /// What was.
        id: EntryId,
    },
}

impl Line {
    /// As it is written.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// What a journal says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Replay {
    /// Held, or about to be.
    pub(super) entries: BTreeMap<EntryId, Entry>,
    /// The next id that was never used.
    pub(super) next: u64,
    /// Bytes of complete lines. What follows was being written when its writer died, so nothing was acquired.
    pub(super) complete: usize,
    /// Lines that make no sense, each with its number from 1. What they recorded is unknown.
    pub(super) problems: Vec<(usize, String)>,
}

/// Reads the bytes of a file. A wrong header is a problem in line 1 and nothing after it is read.
pub(super) fn replay(bytes: &[u8]) -> Replay {
    let mut replay = Replay {
        complete: bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1),
        ..Replay::default()
    };
    let mut lines = bytes[..replay.complete].split_inclusive(|b| *b == b'\n');
    match lines.next() {
        // Torn in the header: nothing was recorded yet.
        None => return replay,
        Some(header) if header == HEADER.as_bytes() => {}
        Some(other) => {
            let text = format!("`{}` is not the header of a journal that this version reads", shown(other));
            replay.problems.push((1, text));
            return replay;
        }
    }
    for (index, line) in lines.enumerate() {
        match serde_json::from_slice::<Line>(line) {
            Ok(Line::Acquire { id, entry }) => {
                replay.next = replay.next.max(id.0.saturating_add(1));
                replay.entries.insert(id, entry);
            }
            Ok(Line::Release { id }) => {
                replay.entries.remove(&id);
            }
            Err(e) => replay.problems.push((index + 2, format!("`{}`: {e}", shown(line)))),
        }
    }
    replay
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(120)]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mount(n: u64) -> Entry {
        Entry::Mount { target: format!("/m/{n}\n\"\\ é").into() }
    }

    /// What is held after so many bytes.
    type Moment = (usize, BTreeMap<EntryId, Entry>);

    /// What a sandbox does: true acquires, false releases one of those held.
    fn written(operations: &[(bool, usize)]) -> (Vec<u8>, Vec<Moment>) {
        let mut bytes = HEADER.as_bytes().to_vec();
        let mut held = BTreeMap::new();
        let mut states = vec![(0, held.clone()), (bytes.len(), held.clone())];
        for (n, (acquire, which)) in (0u64..).zip(operations) {
            let line = if *acquire || held.is_empty() {
                held.insert(EntryId(n), mount(n));
                Line::Acquire { id: EntryId(n), entry: mount(n) }
            } else {
                let id = *held.keys().nth(which % held.len()).unwrap();
                held.remove(&id);
                Line::Release { id }
            };
            bytes.extend(line.bytes().unwrap());
            states.push((bytes.len(), held.clone()));
        }
        (bytes, states)
    }

    proptest! {
        /// Killed after any byte, the journal says what was held after the last operation that was written whole.
        #[test]
        fn a_cut_anywhere_gives_a_state_that_was(
            operations in prop::collection::vec((any::<bool>(), any::<usize>()), 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let (bytes, states) = written(&operations);
            let cut = cut.index(bytes.len() + 1);
            let got = replay(&bytes[..cut]);
            let (end, held) = states.iter().rev().find(|(end, _)| *end <= cut).unwrap();
            prop_assert_eq!(&got.entries, held);
            prop_assert_eq!(got.complete, *end);
            prop_assert!(got.problems.is_empty());
        }

        /// An id is never given twice, not even after its release.
        #[test]
        fn ids_are_not_reused(operations in prop::collection::vec((any::<bool>(), any::<usize>()), 1..12)) {
            let (bytes, states) = written(&operations);
            let next = replay(&bytes).next;
            let used = states.iter().flat_map(|(_, held)| held.keys()).max().unwrap();
            prop_assert!(next > used.0);
        }

        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut with_header = HEADER.as_bytes().to_vec();
            with_header.extend(&bytes);
            replay(&bytes);
            replay(&with_header);
        }
    }

    #[test]
    fn every_kind_survives_writing_and_reading() {
        let entries = [
            Entry::Process {
                role: "vmm".into(),
                process: crate::os::ProcessIdentity { pid: 7, start: u64::MAX },
            },
            Entry::Vm { name: "skep-1".into() },
            mount(1),
            Entry::Directory { path: "/d".into() },
            Entry::File { path: "/f".into() },
        ];
        let mut bytes = HEADER.as_bytes().to_vec();
        for (n, entry) in (0..).zip(&entries) {
            bytes.extend(Line::Acquire { id: EntryId(n), entry: entry.clone() }.bytes().unwrap());
        }
        let replay = replay(&bytes);
        assert_eq!(replay.problems, []);
        assert_eq!(replay.entries.into_values().collect::<Vec<_>>(), entries);
    }

    #[test]
    fn a_bad_line_is_told_and_the_others_are_read() {
        let good = Line::Acquire { id: EntryId(5), entry: mount(5) }.bytes().unwrap();
        let mut bytes = HEADER.as_bytes().to_vec();
        bytes.extend(b"{\"acquire\":{\"id\":4,\"entry\":{\"kind\":\"tap\",\"name\":\"tap0\"}}}\n");
        bytes.extend(&good);
        let got = replay(&bytes);
        assert_eq!(got.entries.len(), 1);
        assert_eq!(got.problems.len(), 1);
        assert_eq!(got.problems[0].0, 2);
        assert!(got.problems[0].1.contains("tap"), "{:?}", got.problems);
        // Another format is not guessed at.
        let mut other = b"{\"skep_journal\":2}\n".to_vec();
        other.extend(&good);
        let got = replay(&other);
        assert!(got.entries.is_empty());
        assert_eq!(got.problems[0].0, 1);
    }
}
