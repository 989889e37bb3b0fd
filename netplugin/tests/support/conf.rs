//! Pieces of network configurations, whatever the system.

use serde_json::{Value, json};

/// Puts the fields of one object into another, objects into objects.
pub fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

/// A policy under which everybody may open everything.
pub fn open_policy() -> Value {
    json!({ "policy": { "egress": { "allow": ["any"] }, "ingress": { "allow": ["any"] } } })
}

/// A policy with these lists.
pub fn policy(egress: Value, ingress: Value) -> Value {
    json!({ "policy": { "egress": egress, "ingress": ingress } })
}
