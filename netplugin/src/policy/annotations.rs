//! The policy and the group that a pod's annotations bring.

use std::collections::BTreeMap;

use super::{GroupName, NetworkPolicy, Policy, PolicyError};

/// The pod annotation that carries a sandbox's own policy, as JSON, where the network's policy permits it.
pub const POLICY_ANNOTATION: &str = "network.skep.org/policy";
/// The pod annotation that puts a sandbox into a group, where the network's policy permits it.
const GROUP_ANNOTATION: &str = "network.skep.org/group";
/// Annotations of this prefix are ours: an unknown one is a mistake, not somebody else's.
const ANNOTATION_PREFIX: &str = "network.skep.org/";

/// A sandbox's own policy and group from a pod's annotations.
pub fn from_annotations(
    annotations: &BTreeMap<String, String>,
    network: &NetworkPolicy,
) -> Result<(Policy, Option<GroupName>), PolicyError> {
    let (mut policy, mut group) = (Policy::default(), network.group.clone());
    for (name, value) in annotations.iter().filter(|(name, _)| name.starts_with(ANNOTATION_PREFIX)) {
        if !network.annotations {
            return Err(PolicyError::AnnotationsOff(name.clone()));
        }
        let wrong = |why: String| PolicyError::Annotation { name: name.clone(), why };
        match name.as_str() {
            POLICY_ANNOTATION => {
                policy = serde_json::from_str(value).map_err(|error| wrong(error.to_string()))?;
            }
            GROUP_ANNOTATION => {
                group =
                    Some(value.clone().try_into().map_err(|error: PolicyError| wrong(error.to_string()))?);
            }
            _ => return Err(wrong("is unknown".to_owned())),
        }
    }
    Ok((policy, group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_count_only_where_the_network_says_so() {
        let annotations = BTreeMap::from([
            ("app".to_owned(), "x".to_owned()),
            (POLICY_ANNOTATION.to_owned(), r#"{"egress":{"allow":["192.0.2.0/24"]}}"#.to_owned()),
            (GROUP_ANNOTATION.to_owned(), "web".to_owned()),
        ]);
        let mut network = NetworkPolicy::default();
        assert!(matches!(from_annotations(&annotations, &network), Err(PolicyError::AnnotationsOff(_))));
        network.annotations = true;
        let (policy, group) = from_annotations(&annotations, &network).unwrap();
        assert_eq!(policy.egress.allow.len(), 1);
        assert_eq!(group.unwrap().as_str(), "web");
        let unknown = BTreeMap::from([("network.skep.org/polcy".to_owned(), String::new())]);
        assert!(matches!(from_annotations(&unknown, &network), Err(PolicyError::Annotation { .. })));
    }
}
