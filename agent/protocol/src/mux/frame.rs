//! What of yamux's frames concerns us: version, type, flags (2), stream id (4), length (4), big-endian; only data
//! has a body.

pub(super) const HEADER: usize = 12;

pub(super) const TYPE_DATA: u8 = 0;
pub(super) const TYPE_PING: u8 = 2;

pub(super) const FLAG_SYN: u8 = 1;
pub(super) const FLAG_ACK: u8 = 2;
pub(super) const FLAG_FIN: u8 = 4;
pub(super) const FLAG_RST: u8 = 8;

/// The header of a data frame.
pub(super) fn data_header(id: u32, flags: u8, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[3] = flags;
    header[4..8].copy_from_slice(&id.to_be_bytes());
    header[8..].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    header
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A whole frame.
    pub(crate) fn frame(kind: u8, flags: u8, id: u32, body: &[u8]) -> Vec<u8> {
        let mut header = data_header(id, flags, body.len());
        header[1] = kind;
        [&header, body].concat()
    }
}
