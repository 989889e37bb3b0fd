//! The network's DHCP server, in a jail.

use std::ops::Deref;

use super::Jail;
use super::dhcp_server::{Files, serve};

/// A server in a jail that has 203.0.113.1/24.
pub struct Server {
    files: Files,
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts it, with leases of so many seconds.
    pub fn start(jail: &Jail, seconds: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Self { files: Files::new(dir.path()), dir };
        server.begin();
        let path = server.dir.path().to_owned();
        jail.serve(move || serve(&Files::new(&path), seconds));
        server
    }
}

impl Deref for Server {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.files
    }
}
