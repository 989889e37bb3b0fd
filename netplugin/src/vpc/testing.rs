//! A declaration to try things with.

use serde_json::{Value, json};

use super::{Declaration, DeclarationError};

/// A network of three nodes, with these fields in place of its own.
pub(super) fn declaration(more: Value) -> Result<Declaration, DeclarationError> {
    let mut value = json!({
        "version": 1, "name": "vpc", "revision": 1, "vni": 100, "subnets": ["10.1.0.0/16"], "maxNodes": 255,
        "nodes": [{"name": "a", "id": 1, "address": "192.0.2.1"},
                  {"name": "b", "id": 2, "address": "192.0.2.2", "alternate": "2001:db8::2"},
                  {"name": "c", "id": 3, "address": "192.0.2.3", "ssh": "admin@c.example"}],
    });
    let Value::Object(more) = more else { panic!() };
    value.as_object_mut().unwrap().extend(more);
    Declaration::parse(&serde_json::to_vec(&value).unwrap())
}
