//! What the kernel packs its answers in (nv(9)). No input or output.

/// A list's header: magic, version, flags, descriptors, size.
const LIST_HEADER: usize = 3 + 8 + 8;
/// A pair's header: type, size of the name, size of the value, number of values.
const PAIR_HEADER: usize = 1 + 2 + 8 + 8;
/// `NV_TYPE_BOOL`.
const BOOL: u8 = 2;
/// `NV_TYPE_NVLIST`: the first type whose value is pairs of its own.
const NESTED: u8 = 5;

fn number<const N: usize>(packed: &[u8], at: usize) -> Option<usize> {
    let mut word = [0; 8];
    word[..N].copy_from_slice(packed.get(at..at.checked_add(N)?)?);
    usize::try_from(u64::from_le_bytes(word)).ok()
}

/// The truth value `running` among the list's own pairs before any nested ones; none if it is not there.
pub(super) fn running(packed: &[u8]) -> Option<bool> {
    let mut at = LIST_HEADER;
    loop {
        let kind = *packed.get(at)?;
        if kind >= NESTED {
            return None;
        }
        let (name, value) = (number::<2>(packed, at + 1)?, number::<8>(packed, at + 3)?);
        let from = at + PAIR_HEADER;
        let name = packed.get(from..from.checked_add(name)?)?;
        let from = from + name.len();
        let bytes = packed.get(from..from.checked_add(value)?)?;
        if name == b"running\0" && kind == BOOL {
            return bytes.first().map(|byte| *byte != 0);
        }
        at = from + value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(kind: u8, name: &str, value: &[u8]) -> Vec<u8> {
        let (len, size) = (u16::try_from(name.len() + 1).unwrap(), value.len() as u64);
        [&[kind][..], &len.to_le_bytes(), &size.to_le_bytes(), &[0; 8], name.as_bytes(), &[0], value].concat()
    }

    #[test]
    fn the_pair_is_found_among_others_and_missed_where_it_is_not() {
        let list = |pairs: &[Vec<u8>]| [vec![0; LIST_HEADER], pairs.concat()].concat();
        let debug = pair(3, "debug", &[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(running(&list(&[pair(BOOL, "running", &[1])])), Some(true));
        assert_eq!(running(&list(&[debug.clone(), pair(BOOL, "running", &[0])])), Some(false));
        assert_eq!(running(&list(&[debug.clone(), pair(3, "running", &[1; 8])])), None);
        assert_eq!(running(&list(&[debug, pair(NESTED, "x", &[]), pair(BOOL, "running", &[1])])), None);
        assert_eq!(running(&[]), None);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(packed in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = running(&packed);
        }
    }
}
