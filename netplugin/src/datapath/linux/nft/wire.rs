//! Netlink attributes.

/// Appends attributes to a message.
pub(crate) struct Attrs<'a>(pub(crate) &'a mut Vec<u8>);

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

impl Attrs<'_> {
    /// An attribute of bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        // Every caller's value is far below 64 KiB: names, keys, expressions of one rule.
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
    }

    /// A text, with the zero byte the kernel wants.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let len = u16::try_from(value.len() + 5).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.pad();
    }

    /// A number in network byte order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A nested list of attributes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attrs<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(&mut Attrs(self.0));
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The attributes in `buffer`, up to the first that makes no sense.
pub(crate) fn attributes(mut buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(buffer.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(buffer.get(2..4)?.try_into().ok()?);
        let value = buffer.get(4..len)?;
        buffer = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
        // Without the flags for nesting and byte order.
        Some((kind & 0x3fff, value))
    })
}

/// The value of the first attribute of a kind.
pub(crate) fn find_attribute(buffer: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(buffer).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut buffer = Vec::new();
        let mut attrs = Attrs(&mut buffer);
        attrs.text(1, "abcd");
        attrs.nest(2, |inner| inner.be32(7, 0x0102_0304));
        assert_eq!(buffer.len(), 12 + 4 + 8);
        let found: Vec<_> = attributes(&buffer).collect();
        assert_eq!(found[0], (1, b"abcd\0".as_slice()));
        assert_eq!(find_attribute(found[1].1, 7), Some([1, 2, 3, 4].as_slice()));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
