//! The kernel's environment, where the host's command line ends up: kenv(2).

use nix::errno::Errno;

/// More than a command line and a kernel's hints fill.
const MOST: usize = 64 * 1024;

/// All of it as one line of `name=value` words, as Linux has its command line.
pub(super) fn line() -> nix::Result<String> {
    let mut buffer = vec![0_u8; MOST];
    let length = libc::c_int::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the buffer has `length` bytes, and no name is read for a dump.
    let result = unsafe { libc::kenv(libc::KENV_DUMP, std::ptr::null(), buffer.as_mut_ptr().cast(), length) };
    Errno::result(result)?;
    Ok(words(&buffer))
}

/// The words end with a zero each, and all of them with two.
fn words(buffer: &[u8]) -> String {
    let words = buffer.split(|byte| *byte == 0).take_while(|word| !word.is_empty());
    let words: Vec<_> = words.map(|word| String::from_utf8_lossy(word).trim().replace(' ', "_")).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_with_a_zero_each() {
        assert_eq!(words(b"a=1\0skep.log=debug\0\0junk\0"), "a=1 skep.log=debug");
        assert_eq!(words(b"\0\0"), "");
    }
}
