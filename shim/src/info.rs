//! `-info` and `-v`: what this shim is.

use std::{io::Write as _, os::fd::AsFd};

use anyhow::Context as _;
use protobuf::{Message as _, MessageField};
use skep_containerd_api::introspection::{RuntimeInfo, RuntimeVersion};

use crate::input;

/// The name under which containerd finds this program.
const RUNTIME: &str = "io.containerd.skep.v2";

/// Prints what containerd 2.2 and later ask before they create a container.
pub(crate) fn run() -> anyhow::Result<()> {
    // Options that are sent along change nothing of this, but whoever writes them waits for a reader.
    let _ = input::read(std::io::stdin().as_fd());
    std::io::stdout().write_all(&describe().write_to_bytes()?).context("standard output")
}

/// Prints the version for people.
pub(crate) fn version() {
    println!("containerd-shim-skep-v2 {}", skep::VERSION);
}

fn describe() -> RuntimeInfo {
    RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(RuntimeVersion {
            version: skep::VERSION.into(),
            ..RuntimeVersion::default()
        }),
        ..RuntimeInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_name_and_version() {
        let bytes = describe().write_to_bytes().unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.name, RUNTIME);
        assert_eq!(info.version.version, skep::VERSION);
    }
}
