//! `nf_tables` over netlink: one transaction per change, nothing forked.
//!
//! No crate fits: `rustables` is GPL, `nftnl` needs a C library, `nftables` forks nft(8) for each change. This is a
//! small typed encoder for what Skep's rules need and no more. Source of facts: the kernel's
//! `include/uapi/linux/netfilter/nf_tables.h`.

mod batch;
mod expr;
mod set;
mod socket;
mod verdict;
mod wire;

pub(crate) use batch::{Batch, ChainType, Family, Hook};
pub(crate) use expr::{Base, Meta, Rule};
pub(crate) use set::{Data, Element, Field, Key, SetFlags, SetSpec};
pub(crate) use socket::{Nft, NftError};
pub(crate) use verdict::Verdict;
pub(super) use wire::{Attrs, find_attribute};
