//! Any bytes as the result of another plugin.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep_cni::cni::{AddResult, CniVersion};

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    let Ok(result) = AddResult::from_json(&value) else { return };
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let version: CniVersion = version.parse().expect("a version we speak");
        let again = AddResult::from_json(&result.to_json(version)).expect("what we write, we read");
        assert_eq!(again.ips.len(), result.ips.len());
    }
});
