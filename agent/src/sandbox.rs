//! Making the booted guest one sandbox: its clock, its randomness, its name, its shares.

use std::path::{Component, Path};
use std::sync::{Mutex, PoisonError};

use skep_protocol::PROTOCOL_VERSION;
use skep_protocol::api::{CreateSandboxRequest, CreateSandboxResponse, Network};

use crate::clock;
use crate::error::{Code, Refusal};
use crate::os::{ENTROPY_MAX, machine, network, settings, share};

/// Least entropy that makes a difference.
const ENTROPY_MIN: usize = 32;
const SHARES_MAX: usize = 64;
const SYSCTLS_MAX: usize = 256;

/// The sandbox that this guest is, once it is one.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    started_ns: i64,
    ready_ns: i64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    created: bool,
    network_settled: bool,
    mounted: Vec<String>,
}

impl Sandbox {
    pub(crate) fn new(started_ns: i64, ready_ns: i64) -> Self {
        Self { started_ns, ready_ns, state: Mutex::default() }
    }

    /// Carries the request out. What failed half way cannot be tried again: the host throws the guest away.
    pub(crate) fn create(&self, request: &CreateSandboxRequest) -> Result<CreateSandboxResponse, Refusal> {
        if request.protocol_version != PROTOCOL_VERSION {
            return Err(Refusal::precondition(format!(
                "protocol_version: the host speaks {}, this agent ({}) {PROTOCOL_VERSION}",
                request.protocol_version,
                env!("CARGO_PKG_VERSION")
            )));
        }
        check(request)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut state.created, true) {
            return Err(Refusal::new(Code::AlreadyExists, "this guest is a sandbox already"));
        }
        if request.realtime_ns != 0 {
            set_clock(request.realtime_ns)?;
        }
        if !request.entropy.is_empty() {
            machine::credit(&request.entropy)
                .map_err(|e| Refusal::internal(format!("cannot add entropy: {e}")))?;
        }
        if !request.hostname.is_empty() {
            nix::unistd::sethostname(&request.hostname)
                .map_err(|e| Refusal::invalid(format!("hostname {:?}: {e}", request.hostname)))?;
        }
        if request.shm_bytes != 0 {
            settings::size_shm(request.shm_bytes)?;
        }
        for (name, value) in &request.sysctls {
            settings::set_parameter(name, value)?;
        }
        for wanted in &request.shares {
            share::attach(wanted)?;
            state.mounted.push(wanted.mount_point.clone());
        }
        let kernel = nix::sys::utsname::uname()
            .map_err(|e| Refusal::internal(format!("cannot read the kernel's name: {e}")))?;
        let mut response = CreateSandboxResponse::new();
        response.agent_version = env!("CARGO_PKG_VERSION").into();
        response.kernel_release = kernel.release().to_string_lossy().into_owned();
        response.agent_started_ns = self.started_ns;
        response.agent_ready_ns = self.ready_ns;
        Ok(response)
    }

    /// Refuses what needs a sandbox before there is one.
    pub(crate) fn check_created(&self) -> Result<(), Refusal> {
        if self.state.lock().unwrap_or_else(PoisonError::into_inner).created {
            return Ok(());
        }
        Err(Refusal::precondition("this guest is no sandbox yet"))
    }

    /// Makes the guest's network what the host says, which it may say once.
    pub(crate) fn settle_network(&self, network: &Network) -> Result<(), Refusal> {
        self.check_created()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.network_settled {
            return Err(Refusal::precondition("network: the guest has one already"));
        }
        network::settle(network)?;
        state.network_settled = true;
        Ok(())
    }

    /// Where shares are mounted, last first.
    pub(crate) fn mounted(&self) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.mounted.iter().rev().cloned().collect()
    }
}

/// Everything that can be wrong with a request, before anything is changed.
fn check(request: &CreateSandboxRequest) -> Result<(), Refusal> {
    let length = request.entropy.len();
    if length != 0 && !(ENTROPY_MIN..=ENTROPY_MAX).contains(&length) {
        return Err(Refusal::invalid(format!("entropy: {length} bytes, not {ENTROPY_MIN} to {ENTROPY_MAX}")));
    }
    check_clock(request.realtime_ns)?;
    if request.shares.len() > SHARES_MAX {
        return Err(Refusal::invalid(format!("shares: {}, more than {SHARES_MAX}", request.shares.len())));
    }
    if request.sysctls.len() > SYSCTLS_MAX {
        return Err(Refusal::invalid(format!("sysctls: {}, more than {SYSCTLS_MAX}", request.sysctls.len())));
    }
    for (index, share) in request.shares.iter().enumerate() {
        let plain = Path::new(&share.mount_point)
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !share.mount_point.starts_with('/') || share.mount_point == "/" || !plain {
            return Err(Refusal::invalid(format!(
                "shares[{index}].mount_point {:?}: not an absolute path below the root",
                share.mount_point
            )));
        }
        if share.tag.is_empty() || share.tag.len() > 31 {
            return Err(Refusal::invalid(format!(
                "shares[{index}].tag {:?}: not 1 to 31 bytes long",
                share.tag
            )));
        }
    }
    Ok(())
}

fn check_clock(realtime_ns: i64) -> Result<(), Refusal> {
    if realtime_ns < 0 {
        return Err(Refusal::invalid(format!("realtime_ns {realtime_ns}: before the epoch")));
    }
    Ok(())
}

/// Steps the guest's clock to the host's, nanoseconds since the epoch.
pub(crate) fn set_clock(realtime_ns: i64) -> Result<(), Refusal> {
    check_clock(realtime_ns)?;
    clock::set_realtime(realtime_ns).map_err(|e| Refusal::internal(format!("cannot set the clock: {e}")))
}

#[cfg(test)]
mod tests {
    use skep_protocol::api::Share;

    use super::*;

    fn request() -> CreateSandboxRequest {
        let mut request = CreateSandboxRequest::new();
        request.protocol_version = PROTOCOL_VERSION;
        request
    }

    #[test]
    fn faults_name_their_field() {
        let fault = |change: fn(&mut CreateSandboxRequest)| {
            let mut request = request();
            change(&mut request);
            let refusal = check(&request).expect_err("fault");
            assert_eq!(refusal.code, Code::InvalidArgument);
            refusal.message
        };
        assert!(fault(|r| r.entropy = vec![0; 31]).starts_with("entropy: 31 bytes"));
        assert!(fault(|r| r.entropy = vec![0; 513]).starts_with("entropy: 513 bytes"));
        assert!(fault(|r| r.realtime_ns = -1).starts_with("realtime_ns -1"));
        for point in ["", "/", "run", "/run/../etc"] {
            let mut request = request();
            request.shares = vec![Share { tag: "skep".into(), mount_point: point.into(), ..Share::new() }];
            let refusal = check(&request).expect_err(point);
            assert!(refusal.message.starts_with("shares[0].mount_point"), "{}", refusal.message);
        }
        assert!(
            fault(|r| r.shares = vec![Share { mount_point: "/a".into(), ..Share::new() }])
                .starts_with("shares[0].tag")
        );
    }

    #[test]
    fn another_protocol_is_refused_with_both_versions() {
        let mut request = request();
        request.protocol_version = 999;
        let refusal = Sandbox::new(1, 2).create(&request).expect_err("version");
        assert_eq!(refusal.code, Code::FailedPrecondition);
        assert!(refusal.message.contains("999") && refusal.message.contains(&PROTOCOL_VERSION.to_string()));
    }

    #[test]
    fn a_guest_becomes_a_sandbox_once() {
        let sandbox = Sandbox::new(1, 2);
        assert!(sandbox.check_created().is_err());
        let response = sandbox.create(&request()).expect("create");
        assert_eq!((response.agent_started_ns, response.agent_ready_ns), (1, 2));
        assert!(!response.kernel_release.is_empty());
        assert!(sandbox.check_created().is_ok());
        assert_eq!(sandbox.create(&request()).expect_err("twice").code, Code::AlreadyExists);
    }
}
