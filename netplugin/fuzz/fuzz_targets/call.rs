//! Any text in the environment's variables.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep_cni::cni::Invocation;

fuzz_target!(|values: [Option<String>; 6]| {
    let names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH"];
    let get = |wanted: &str| {
        names.iter().zip(&values).find(|(name, _)| **name == wanted).and_then(|(_, value)| value.clone())
    };
    let Ok(call) = Invocation::parse(get) else { return };
    if let Some(attach) = call.attach {
        // What becomes part of a path or of an interface's name.
        assert!(attach.container_id.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)));
        assert!((1..=15).contains(&attach.ifname.len()) && !attach.ifname.contains('/'));
    }
});
