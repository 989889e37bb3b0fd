//! Hearing what an interface receives, by bpf(4).

/// What is before each frame in what bpf(4) gives: `struct bpf_hdr` of net/bpf.h without its padding. The time, the
/// length of what was kept of the frame and of the frame itself, its own length.
const HEADER: usize = 26;

/// The frames in what a read of bpf(4) gave. What was cut short is left out.
pub(crate) fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let four = |at: usize| {
            let four = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            usize::try_from(u32::from_ne_bytes(four)).unwrap_or(usize::MAX)
        };
        let (kept, whole) = (four(16), four(20));
        let before = usize::from(u16::from_ne_bytes([header[24], header[25]]));
        let Some(end) = before.checked_add(kept).filter(|end| before >= HEADER && *end <= bytes.len()) else {
            break;
        };
        if kept == whole {
            frames.push(bytes[before..end].to_vec());
        }
        // BPF_WORDALIGN
        bytes = bytes.get(end.next_multiple_of(8)..).unwrap_or_default();
    }
    frames
}

#[cfg(target_os = "freebsd")]
pub use device::Capture;

#[cfg(target_os = "freebsd")]
mod device {
    use std::collections::VecDeque;
    use std::fs::File;
    use std::io::{self, Read as _};
    use std::time::Instant;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::split;
    use crate::Insn;
    use crate::error::Error;
    use crate::interface::name_of;
    use crate::sys::{ioctl, ior, iow, kernel};

    /// `struct bpf_program` of net/bpf.h.
    #[repr(C)]
    struct Program {
        len: u32,
        // Aligns the pointer.
        _pad: u32,
        insns: *const [u8; 8],
    }

    // net/bpf.h
    const BIOCGBLEN: u64 = ior::<u32>(b'B', 102);
    const BIOCSETF: u64 = iow::<Program>(b'B', 103);
    const BIOCSETIF: u64 = iow::<[u8; 32]>(b'B', 108);
    const BIOCIMMEDIATE: u64 = iow::<u32>(b'B', 112);
    const BIOCSDIRECTION: u64 = iow::<u32>(b'B', 119);
    const BPF_D_IN: u32 = 0;

    const _: () = assert!(BIOCGBLEN == 0x4004_4266 && BIOCSETF == 0x8010_4267 && BIOCSETIF == 0x8020_426c);

    /// An interface that is listened to.
    #[derive(Debug)]
    pub struct Capture {
        device: File,
        room: usize,
        heard: VecDeque<Vec<u8>>,
    }

    impl Capture {
        /// Listens to an interface: to the frames that it receives, not those that it sends, and of them to those that a
        /// program lets through.
        pub fn open(interface: &str, program: &[Insn]) -> Result<Self, Error> {
            let open = || {
                let device = File::options().read(true).write(true).open("/dev/bpf")?;
                let code: Vec<[u8; 8]> = program
                    .iter()
                    .map(|Insn { code, jt, jf, k }| {
                        let mut bytes = [0; 8];
                        bytes[..2].copy_from_slice(&code.to_ne_bytes());
                        bytes[2..4].copy_from_slice(&[*jt, *jf]);
                        bytes[4..].copy_from_slice(&k.to_ne_bytes());
                        bytes
                    })
                    .collect();
                let len = u32::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
                // Before the interface, so that nothing else is ever heard. The kernel copies the program.
                ioctl(&device, BIOCSETF, &mut Program { len, _pad: 0, insns: code.as_ptr() })?;
                ioctl(&device, BIOCIMMEDIATE, &mut 1_u32)?;
                ioctl(&device, BIOCSDIRECTION, &mut { BPF_D_IN })?;
                let mut request = [0; 32];
                request[..16].copy_from_slice(&name_of(interface)?);
                ioctl(&device, BIOCSETIF, &mut request)?;
                let mut room = 0_u32;
                ioctl(&device, BIOCGBLEN, &mut room)?;
                Ok((device, room as usize))
            };
            let (device, room) =
                open().map_err(|error| kernel(format!("listen to interface {interface}"), error))?;
            Ok(Self { device, room, heard: VecDeque::new() })
        }

        /// The next frame; none if there is none until then.
        pub fn next(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>> {
            loop {
                if let Some(frame) = self.heard.pop_front() {
                    return Ok(Some(frame));
                }
                let left = until.saturating_duration_since(Instant::now());
                let limit = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
                match poll(&mut [PollFd::new(&self.device, PollFlags::IN)], Some(&limit)) {
                    Ok(0) => return Ok(None),
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
                // bpf(4) wants to be read with all the room that it has.
                let mut bytes = vec![0; self.room];
                let got = self.device.read(&mut bytes)?;
                self.heard.extend(split(&bytes[..got]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kept: u32, whole: u32, frame: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(kept.to_ne_bytes());
        bytes.extend(whole.to_ne_bytes());
        bytes.extend(26_u16.to_ne_bytes());
        bytes.extend(frame);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn frames_are_found_whatever_is_between() {
        let all = [record(3, 3, b"one"), record(2, 9, b"tw"), record(5, 5, b"three")].concat();
        assert_eq!(split(&all), [b"one".to_vec(), b"three".to_vec()]);
        for len in 0..all.len() {
            assert!(split(&all[..len]).len() <= 2);
        }
        // A length of nothing would never end, one of everything would be past the end.
        assert_eq!(split(&record(u32::MAX, u32::MAX, b"x")), Vec::<Vec<u8>>::new());
        assert_eq!(split(&[0; 64]), Vec::<Vec<u8>>::new());
    }
}
