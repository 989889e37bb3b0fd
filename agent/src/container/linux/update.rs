//! Changing a container's limits.

use std::path::{Path, PathBuf};

use libcgroups::common::{CgroupManager as _, ControllerOpt};
use libcgroups::v2::manager::{Manager, V2ManagerError};
use libcontainer::oci_spec::runtime::LinuxResources;

use crate::boot::linux::cgroups;
use crate::container::wanted;
use crate::error::{Refusal, chain};

/// Reads the `linux.resources` object of a spec.
pub(crate) fn parse(json: &[u8]) -> Result<LinuxResources, Refusal> {
    wanted::parse("resources", json)
}

/// Sets what `resources` sets. Lowering a limit may take the kernel a while: for helper processes.
pub(crate) fn apply(group: &Path, resources: &LinuxResources) -> Result<(), Refusal> {
    let options =
        ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
    Manager::new(PathBuf::from(cgroups::MOUNT), group.to_owned())
        .and_then(|manager| manager.apply(&options))
        .map_err(|e| failed(&e))
}

/// What the kernel does not take was asked for by the host.
fn failed(error: &V2ManagerError) -> Refusal {
    Refusal::invalid(format!("resources: {}", chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_the_field() {
        let refusal = parse(b"{\"memory\": {\"limit\": \"much\"}}").expect_err("fault");
        assert!(refusal.message.starts_with("resources: "), "{}", refusal.message);
        let resources = parse(b"{\"pids\": {\"limit\": 7}}").expect("fine");
        assert!(apply(Path::new("/skep/no-such-group"), &resources).is_err());
    }
}
