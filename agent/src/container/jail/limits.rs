//! Limits and counts of a jail: rctl(4), as rctl(8) has its rules.

use std::ffi::CString;
use std::path::Path;

use nix::errno::Errno;
use serde::Deserialize;

use crate::error::Refusal;

/// What the kernel answers at most.
const ANSWER_MAX: usize = 16 * 1024;
/// The resource that is a jail's resident memory.
pub(super) const MEMORY: &str = "memoryuse";
/// The kernel's period of a CPU quota if none is set, in microseconds, as on Linux.
const PERIOD: u64 = 100_000;

/// What was not possible.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LimitsError {
    #[error(
        "the guest's kernel counts no resources: it needs options RACCT and RCTL, and kern.racct.enable=1"
    )]
    NotCounted,
    #[error("cannot {what} {rule}: {errno}")]
    Refused { what: &'static str, rule: String, errno: Errno },
}

impl From<LimitsError> for Refusal {
    fn from(error: LimitsError) -> Self {
        match error {
            LimitsError::NotCounted => Self::precondition(error.to_string()),
            LimitsError::Refused { .. } => Self::internal(error.to_string()),
        }
    }
}

/// The part of OCI's `linux.resources` that a jail can be held to; what is left out stays as it is.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Resources {
    #[serde(default)]
    memory: Memory,
    #[serde(default)]
    cpu: Cpu,
    #[serde(default)]
    pids: Pids,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Memory {
    limit: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Cpu {
    quota: Option<i64>,
    period: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Pids {
    limit: Option<i64>,
}

/// A limit that is to be: its resource and, unless it ends, what happens from which amount on.
type Rule = (&'static str, Option<(&'static str, u64)>);

impl Resources {
    /// The rules that say so. More processor time waits, more processes fail to be made; that of memory does nothing by
    /// itself (`devctl` tells nobody here): `oom.rs` acts upon it.
    fn rules(&self) -> Vec<Rule> {
        let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        let mut rules: Vec<Rule> = Vec::new();
        if let Some(limit) = self.memory.limit {
            rules.push((MEMORY, positive(limit).map(|limit| ("devctl", limit))));
        }
        if let Some(limit) = self.pids.limit {
            rules.push(("maxproc", positive(limit).map(|limit| ("deny", limit))));
        }
        if let Some(quota) = self.cpu.quota {
            let period = self.cpu.period.filter(|period| *period > 0).unwrap_or(PERIOD);
            // In percent of one processor, rounded up: none at all would stop everything.
            let percent = positive(quota).map(|quota| quota.saturating_mul(100).div_ceil(period));
            rules.push(("pcpu", percent.map(|percent| ("deny", percent))));
        }
        rules
    }
}

/// Holds the jail to these.
pub(crate) fn apply(jail: &Path, resources: &Resources) -> Result<(), LimitsError> {
    for (resource, limit) in resources.rules() {
        let subject = format!("jail:{}:{resource}", jail.display());
        match call(rctl_remove_rule, &subject) {
            // There was none.
            Ok(_) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(refused("remove the limit", subject, errno)),
        }
        if let Some((action, amount)) = limit {
            let rule = format!("{subject}:{action}={amount}");
            call(rctl_add_rule, &rule).map_err(|errno| refused("set the limit", rule, errno))?;
        }
    }
    Ok(())
}

/// Forgets every limit of the jail. A kernel that counts nothing has none.
pub(crate) fn forget(jail: &Path) {
    let _ = call(rctl_remove_rule, &format!("jail:{}", jail.display()));
}

/// What the jail uses, by the kernel's names: bytes, seconds and counts.
pub(crate) fn used(jail: &Path) -> Result<Vec<(String, u64)>, LimitsError> {
    let subject = format!("jail:{}", jail.display());
    match call(rctl_get_racct, &subject) {
        Ok(answer) => Ok(numbers(&answer)),
        // It has just gone.
        Err(Errno::ESRCH) => Ok(Vec::new()),
        Err(errno) => Err(refused("count", subject, errno)),
    }
}

/// The jail's limits: resource and amount.
pub(crate) fn set(jail: &Path) -> Result<Vec<(String, u64)>, LimitsError> {
    let subject = format!("jail:{}", jail.display());
    match call(rctl_get_rules, &subject) {
        Ok(answer) => Ok(rules_in(&answer)),
        Err(Errno::ESRCH) => Ok(Vec::new()),
        Err(errno) => Err(refused("read the limits of", subject, errno)),
    }
}

/// `cputime=3,memoryuse=4096`.
fn numbers(answer: &str) -> Vec<(String, u64)> {
    let pair = |word: &str| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    answer.split(',').filter_map(pair).collect()
}

/// `jail:NAME:memoryuse:devctl=4096,…`.
fn rules_in(answer: &str) -> Vec<(String, u64)> {
    let rule = |word: &str| {
        let mut parts = word.split(':');
        let resource = parts.nth(2)?;
        let (_, amount) = parts.next()?.split_once('=')?;
        let amount = amount.split('/').next()?;
        Some((resource.to_owned(), amount.parse().ok()?))
    };
    answer.split(',').filter_map(rule).collect()
}

fn refused(what: &'static str, rule: String, errno: Errno) -> LimitsError {
    if errno == Errno::ENOSYS { LimitsError::NotCounted } else { LimitsError::Refused { what, rule, errno } }
}

/// One of rctl's system calls: a text in, a text out.
type Call =
    unsafe extern "C" fn(*const libc::c_char, libc::size_t, *mut libc::c_char, libc::size_t) -> libc::c_int;

// sys/rctl.h
unsafe extern "C" {
    fn rctl_add_rule(
        input: *const libc::c_char,
        input_length: libc::size_t,
        output: *mut libc::c_char,
        output_length: libc::size_t,
    ) -> libc::c_int;
    fn rctl_remove_rule(
        input: *const libc::c_char,
        input_length: libc::size_t,
        output: *mut libc::c_char,
        output_length: libc::size_t,
    ) -> libc::c_int;
    fn rctl_get_racct(
        input: *const libc::c_char,
        input_length: libc::size_t,
        output: *mut libc::c_char,
        output_length: libc::size_t,
    ) -> libc::c_int;
    fn rctl_get_rules(
        input: *const libc::c_char,
        input_length: libc::size_t,
        output: *mut libc::c_char,
        output_length: libc::size_t,
    ) -> libc::c_int;
}

fn call(function: Call, input: &str) -> Result<String, Errno> {
    let input = CString::new(input).map_err(|_| Errno::EINVAL)?;
    let input = input.as_bytes_with_nul();
    let mut output = vec![0_u8; ANSWER_MAX];
    // SAFETY: both buffers live through the call and are as long as it is told.
    let result =
        unsafe { function(input.as_ptr().cast(), input.len(), output.as_mut_ptr().cast(), output.len()) };
    Errno::result(result)?;
    let text = output.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Vec<Rule> {
        serde_json::from_str::<Resources>(json).expect("json").rules()
    }

    #[test]
    fn limits_become_rules() {
        assert_eq!(rules("{}"), []);
        assert_eq!(
            rules(r#"{"memory":{"limit":1048576},"pids":{"limit":10},"cpu":{"quota":50000,"shares":3}}"#),
            [
                ("memoryuse", Some(("devctl", 1_048_576))),
                ("maxproc", Some(("deny", 10))),
                ("pcpu", Some(("deny", 50)))
            ]
        );
        assert_eq!(rules(r#"{"cpu":{"quota":1500,"period":1000000}}"#), [("pcpu", Some(("deny", 1)))]);
        assert_eq!(
            rules(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#),
            [("memoryuse", None), ("pcpu", None)]
        );
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(
            numbers("cputime=3,memoryuse=4096,x"),
            [("cputime".into(), 3), ("memoryuse".into(), 4096)]
        );
        assert_eq!(
            rules_in("jail:skep+a:memoryuse:devctl=4096,jail:skep+a:maxproc:deny=5/jail"),
            [("memoryuse".to_owned(), 4096), ("maxproc".to_owned(), 5)]
        );
    }
}
