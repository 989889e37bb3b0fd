//! Limits on what an interface carries.

use super::link::Link;
use super::netlink::Route;
use crate::cni::Bandwidth;
use crate::datapath::DatapathError;
use crate::network::Attachment;

/// Limits what passes the port.
pub(super) fn shape(
    _: &mut Route,
    _: &Attachment,
    _: &Link,
    bandwidth: &Bandwidth,
) -> Result<(), DatapathError> {
    if *bandwidth == Bandwidth::default() {
        return Ok(());
    }
    Err(DatapathError::Unsupported {
        what: "runtimeConfig.bandwidth".to_owned(),
        why: "limits on bandwidth are not implemented yet".to_owned(),
    })
}

/// Removes what [`shape`] made.
pub(super) fn unshape(_: &mut Route, _: &Attachment) -> Result<(), DatapathError> {
    Ok(())
}
