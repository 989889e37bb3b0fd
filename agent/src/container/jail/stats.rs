//! What a container uses: not measured yet.

use std::path::Path;

use skep_protocol::api::ContainerStatsResponse;

use crate::error::Refusal;

/// There is nothing to read.
#[derive(Debug, thiserror::Error)]
#[error("a FreeBSD guest does not measure what a container uses yet")]
pub(crate) struct StatsError;

impl From<StatsError> for Refusal {
    fn from(error: StatsError) -> Self {
        Self::precondition(error.to_string())
    }
}

/// Says that there is nothing to read.
pub(crate) fn read(_: &Path) -> Result<ContainerStatsResponse, StatsError> {
    Err(StatsError)
}
