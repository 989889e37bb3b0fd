//! What PID 1 itself has to know of a spec's `linux`.

use serde::Deserialize;

/// What a spec says of Linux: not for here.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct LinuxHead {}
