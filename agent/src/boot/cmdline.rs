//! The agent's options: the `skep.*` parameters of the kernel command line.

use std::time::Duration;

use tracing::Level;

use crate::limits;

/// How the host reaches the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// The virtio-console port named `skep.agent`.
    Console,
    /// The same, and the VMM paces it.
    PacedConsole,
    /// A vsock listener on this port.
    Vsock(u32),
}

/// What the host asked of the agent at boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) channel: Channel,
    pub(crate) log: Level,
    /// How long the host waits for an answer.
    pub(crate) call: Duration,
}

/// A parameter that the agent does not take. Refused, because the host meant something by it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CmdlineError {
    #[error("unknown parameter {0:?} (known: skep.channel, skep.log, skep.call_s)")]
    Unknown(String),
    #[error("skep.channel={0:?}: not \"console\", \"paced-console\" or \"vsock:<port>\"")]
    Channel(String),
    #[error("skep.log={0:?}: not one of error, warn, info, debug, trace")]
    Log(String),
    #[error("skep.call_s={0:?}: not a number of seconds from 1 to 86400")]
    Call(String),
}

/// Reads the `skep.*` parameters, of several with one name the last; everything else on the line is the kernel's.
pub(crate) fn parse(line: &str) -> Result<Options, CmdlineError> {
    let mut options = Options { channel: Channel::Console, log: Level::WARN, call: limits::CALL };
    for word in line.split_ascii_whitespace().filter(|word| word.starts_with("skep.")) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "skep.channel" => options.channel = channel(value)?,
            "skep.log" => options.log = log(value)?,
            "skep.call_s" => options.call = call(value)?,
            _ => return Err(CmdlineError::Unknown(key.to_owned())),
        }
    }
    Ok(options)
}

fn channel(value: &str) -> Result<Channel, CmdlineError> {
    match value {
        "console" => return Ok(Channel::Console),
        "paced-console" => return Ok(Channel::PacedConsole),
        _ => {}
    }
    value
        .strip_prefix("vsock:")
        .and_then(|port| port.parse().ok())
        .map(Channel::Vsock)
        .ok_or_else(|| CmdlineError::Channel(value.to_owned()))
}

fn call(value: &str) -> Result<Duration, CmdlineError> {
    let seconds = value.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| CmdlineError::Call(value.to_owned()))
}

fn log(value: &str) -> Result<Level, CmdlineError> {
    match value {
        "error" => Ok(Level::ERROR),
        "warn" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err(CmdlineError::Log(value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_parameters_are_left_alone() {
        let options = parse("console=ttyS0 quiet loglevel=1 panic=-1\n").expect("parse");
        assert_eq!(options, Options { channel: Channel::Console, log: Level::WARN, call: limits::CALL });
    }

    #[test]
    fn all_channels_and_the_level_are_read() {
        let options = parse("quiet skep.channel=vsock:1024 skep.log=debug skep.call_s=120").expect("parse");
        let call = Duration::from_secs(120);
        assert_eq!(options, Options { channel: Channel::Vsock(1024), log: Level::DEBUG, call });
        assert_eq!(parse("skep.channel=console").expect("parse").channel, Channel::Console);
        let paced = parse("skep.channel=console skep.log=info skep.channel=paced-console").expect("parse");
        assert_eq!(paced.channel, Channel::PacedConsole);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        assert_eq!(parse("skep.chanel=console"), Err(CmdlineError::Unknown("skep.chanel".into())));
        assert_eq!(parse("skep.channel=vsock:x"), Err(CmdlineError::Channel("vsock:x".into())));
        assert_eq!(parse("skep.channel"), Err(CmdlineError::Channel(String::new())));
        for bad in ["0", "-1", "86401", "1m"] {
            assert_eq!(parse(&format!("skep.call_s={bad}")), Err(CmdlineError::Call(bad.into())));
        }
        assert_eq!(parse("skep.log=loud"), Err(CmdlineError::Log("loud".into())));
    }
}
