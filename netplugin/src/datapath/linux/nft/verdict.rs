//! What happens to a packet, in rules and in maps.

use super::wire::Attrs;

// Attribute kinds of nf_tables.h.
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Gone.
    Drop,
    /// On to the next hook.
    Accept,
    /// Back to the calling chain.
    Return,
    /// Into a chain, and back at its end.
    Jump(String),
    /// Into a chain, and at its end back to where this one was called.
    Goto(String),
}

impl Verdict {
    pub(super) fn encode(&self, attrs: &mut Attrs<'_>) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5_i32, None),
        };
        attrs.nest(DATA_VERDICT, |verdict| {
            verdict.bytes(VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                verdict.text(VERDICT_CHAIN, chain);
            }
        });
    }
}
