//! A sparse bitmap over the addresses of one subnet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which offsets are taken. Words of 64 bits, only those with a bit set are kept, so an IPv6 /64 costs what is
/// used of it and a full /16 costs 1024 words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bitmap {
    words: BTreeMap<u128, u64>,
}

impl Bitmap {
    /// Whether `offset` is taken.
    pub fn contains(&self, offset: u128) -> bool {
        self.words.get(&(offset / 64)).is_some_and(|word| word & bit(offset) != 0)
    }

    /// Takes `offset`; false if it was taken.
    pub fn insert(&mut self, offset: u128) -> bool {
        let word = self.words.entry(offset / 64).or_default();
        let fresh = *word & bit(offset) == 0;
        *word |= bit(offset);
        fresh
    }

    /// Frees `offset`; false if it was free.
    pub fn remove(&mut self, offset: u128) -> bool {
        let Some(word) = self.words.get_mut(&(offset / 64)) else { return false };
        let taken = *word & bit(offset) != 0;
        *word &= !bit(offset);
        if *word == 0 {
            self.words.remove(&(offset / 64));
        }
        taken
    }

    /// The lowest free offset within `first..=last`.
    pub fn first_free(&self, first: u128, last: u128) -> Option<u128> {
        let mut offset = first;
        while offset <= last {
            let word = self.words.get(&(offset / 64)).copied().unwrap_or(0);
            let free = !word >> (offset % 64);
            if free != 0 {
                let found = offset.checked_add(u128::from(free.trailing_zeros()))?;
                return (found <= last).then_some(found);
            }
            offset = (offset / 64).checked_add(1)?.checked_mul(64)?;
        }
        None
    }

    /// The offsets that are taken, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u128> {
        self.words.iter().flat_map(|(at, word)| {
            (0..64)
                .filter(move |n| word >> n & 1 == 1)
                .filter_map(move |n| at.checked_mul(64)?.checked_add(n))
        })
    }

    /// How many are taken.
    pub fn len(&self) -> u64 {
        self.words.values().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether none is taken.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

fn bit(offset: u128) -> u64 {
    1 << (offset % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in proptest::collection::vec((any::<bool>(), 0u128..400), 0..300), first in 0u128..400, last in 0u128..400) {
            let (mut map, mut set) = (Bitmap::default(), BTreeSet::new());
            for (add, offset) in ops {
                if add {
                    prop_assert_eq!(map.insert(offset), set.insert(offset));
                } else {
                    prop_assert_eq!(map.remove(offset), set.remove(&offset));
                }
            }
            prop_assert_eq!(map.len(), set.len() as u64);
            prop_assert_eq!(map.is_empty(), set.is_empty());
            prop_assert_eq!(map.first_free(first, last), (first..=last).find(|offset| !set.contains(offset)));
        }
    }

    #[test]
    fn the_end_of_the_numbers_is_no_trap() {
        let mut map = Bitmap::default();
        assert_eq!(map.first_free(u128::MAX, u128::MAX), Some(u128::MAX));
        map.insert(u128::MAX);
        assert_eq!(map.first_free(u128::MAX - 63, u128::MAX), Some(u128::MAX - 63));
        assert_eq!(map.first_free(u128::MAX, u128::MAX), None);
    }
}
