//! Ids as they become file names, socket paths and cgroup names.

use crate::error::Refusal;

/// containerd's own bound; a socket path with the id in it has to stay within 107 bytes.
const MAX: usize = 76;

/// Refuses an id that is empty, too long, or not a plain file name.
pub(crate) fn check(field: &str, id: &str) -> Result<(), Refusal> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if id.is_empty() || id.len() > MAX || !id.bytes().all(plain) || id.starts_with('.') {
        return Err(Refusal::invalid(format!(
            "{field} {id:?}: not 1 to {MAX} letters, digits, '_', '-' or '.', beginning without '.'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_names() {
        for good in ["a", "demo-1", "0123456789abcdef", "a_b.c", &"x".repeat(MAX)] {
            assert!(check("container_id", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\0", &"x".repeat(MAX + 1)] {
            let refusal = check("container_id", bad).expect_err(bad);
            assert!(refusal.message.starts_with("container_id "), "{}", refusal.message);
        }
    }
}
