//! The capability sets of a container's process.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use libcontainer::capabilities::CapabilityExt;
use libcontainer::oci_spec::runtime::{Capabilities as SpecSet, LinuxCapabilities};

/// The five sets, and what is kept a little longer.
#[derive(Debug, Clone)]
pub(crate) struct Capabilities {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
    /// Loading a seccomp filter without `no_new_privs` takes `CAP_SYS_ADMIN` until just before exec.
    loader: bool,
}

impl Capabilities {
    /// What the spec gives; a set it does not name is empty.
    pub(crate) fn new(spec: Option<&LinuxCapabilities>, loader: bool) -> Self {
        let set = |of: fn(&LinuxCapabilities) -> &Option<SpecSet>| -> CapsHashSet {
            spec.and_then(|spec| of(spec).as_ref()).into_iter().flatten().map(CapabilityExt::to_cap).collect()
        };
        Self {
            bounding: set(LinuxCapabilities::bounding),
            effective: set(LinuxCapabilities::effective),
            permitted: set(LinuxCapabilities::permitted),
            inheritable: set(LinuxCapabilities::inheritable),
            ambient: set(LinuxCapabilities::ambient),
            loader,
        }
    }

    /// Narrows the bounding set, which only the privileged may: before the change of user.
    pub(crate) fn bound(&self) -> Result<(), CapsError> {
        for cap in caps::runtime::thread_all_supported() {
            if !self.bounding.contains(&cap) {
                caps::drop(None, CapSet::Bounding, cap)?;
            }
        }
        Ok(())
    }

    /// Sets the others, after the change of user.
    pub(crate) fn take(&self) -> Result<(), CapsError> {
        // The kernel's rules give the order: effective within permitted, ambient within permitted and
        // inheritable. Changing the user emptied the effective set, so it is raised first.
        let now = caps::read(None, CapSet::Permitted)?;
        caps::set(None, CapSet::Effective, &now)?;
        caps::set(None, CapSet::Inheritable, &self.inheritable)?;
        caps::set(None, CapSet::Effective, &self.kept(&self.effective))?;
        caps::set(None, CapSet::Permitted, &self.kept(&self.permitted))?;
        for cap in &self.ambient {
            caps::raise(None, CapSet::Ambient, *cap)?;
        }
        Ok(())
    }

    /// Gives up what was kept for the filter.
    pub(crate) fn finish(&self) -> Result<(), CapsError> {
        if self.loader {
            caps::set(None, CapSet::Effective, &self.effective)?;
            caps::set(None, CapSet::Permitted, &self.permitted)?;
        }
        Ok(())
    }

    fn kept(&self, set: &CapsHashSet) -> CapsHashSet {
        let mut kept = set.clone();
        if self.loader {
            kept.insert(Capability::CAP_SYS_ADMIN);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> LinuxCapabilities {
        serde_json::from_str(json).expect("json")
    }

    #[test]
    fn what_is_not_named_is_not_given() {
        let caps = Capabilities::new(Some(&spec(r#"{"bounding":["CAP_CHOWN"]}"#)), false);
        assert_eq!(caps.bounding, CapsHashSet::from([Capability::CAP_CHOWN]));
        assert!(caps.effective.is_empty() && caps.permitted.is_empty() && caps.ambient.is_empty());
        let none = Capabilities::new(None, false);
        assert!(none.bounding.is_empty() && none.inheritable.is_empty());
    }

    #[test]
    fn the_filters_privilege_is_kept_only_where_it_is_needed() {
        let given = spec(r#"{"effective":["CAP_CHOWN"],"permitted":["CAP_CHOWN"]}"#);
        let chown = CapsHashSet::from([Capability::CAP_CHOWN]);
        let plain = Capabilities::new(Some(&given), false);
        assert_eq!(plain.kept(&plain.effective), chown);
        let loading = Capabilities::new(Some(&given), true);
        assert!(loading.kept(&loading.effective).contains(&Capability::CAP_SYS_ADMIN));
        assert_eq!(loading.effective, chown);
    }
}
