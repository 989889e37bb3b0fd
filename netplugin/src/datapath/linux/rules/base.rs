//! The rules that are the same on every host.

use super::flows::{flows, notes, translation};
use super::frames::frames;
use super::{BRIDGE_SETS, INET_SETS};
use crate::datapath::linux::nft::{Batch, Family};

/// What the tables carry as a note: rules of another note were made by another version of this program and are
/// replaced as a whole.
pub(crate) const NOTE: &[u8] = b"skep-cni rules 6";

/// Makes the tables, which must not exist, with all chains and sets that do not depend on networks.
pub(crate) fn create_base(batch: &mut Batch) {
    batch.family(Family::Bridge).create_table(NOTE);
    for spec in &BRIDGE_SETS {
        batch.set(spec);
    }
    frames(batch);
    batch.family(Family::Inet).create_table(NOTE);
    for spec in &INET_SETS {
        batch.set(spec);
    }
    flows(batch);
    notes(batch);
    translation(batch);
}
