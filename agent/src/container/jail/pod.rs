//! What jails of a pod share beyond the guest: nothing.

use std::borrow::Cow;
use std::sync::Arc;

use super::head::LinuxHead;
use crate::error::Refusal;
use crate::reaper::Reaper;

/// Each jail sees its own processes.
#[derive(Debug, Default)]
pub(crate) struct Pod {}

impl Pod {
    /// The container's specification.
    #[expect(clippy::unused_async, reason = "on Linux a process is made here")]
    pub(crate) async fn share<'a>(
        &self,
        _: &Arc<Reaper>,
        _: &LinuxHead,
        spec: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Refusal> {
        Ok(Cow::Borrowed(spec))
    }
}
