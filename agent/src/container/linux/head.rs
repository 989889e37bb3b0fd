//! What PID 1 itself has to know of a spec's `linux`.

use serde::Deserialize;

/// What processes that are added have to know of a spec.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct LinuxHead {
    #[serde(default)]
    namespaces: Vec<NamespaceHead>,
    personality: Option<PersonalityHead>,
}

#[derive(Debug, Deserialize)]
struct NamespaceHead {
    #[serde(rename = "type")]
    typ: String,
}

#[derive(Debug, Deserialize)]
struct PersonalityHead {
    domain: String,
}

impl LinuxHead {
    /// Whether the container has a namespace of that type.
    pub(crate) fn has(&self, typ: &str) -> bool {
        self.namespaces.iter().any(|namespace| namespace.typ == typ)
    }

    /// The execution domain, as OCI has it.
    pub(crate) fn personality(&self) -> Option<&str> {
        self.personality.as_ref().map(|personality| personality.domain.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_read_from_the_spec() {
        let text = r#"{"namespaces":[{"type":"user"}],"personality":{"domain":"LINUX32"},"seccomp":7}"#;
        let linux: LinuxHead = serde_json::from_str(text).expect("json");
        assert!(linux.has("user") && !linux.has("time") && linux.personality() == Some("LINUX32"));
    }
}
