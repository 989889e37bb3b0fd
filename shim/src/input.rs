//! What containerd writes to the standard input of `start`: options of the runtime, in one of two envelopes.

use std::{
    io,
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use protobuf::{Message, well_known_types::any::Any};
use serde::{Deserialize, Serialize};
use skep_containerd_api::{bootstrap::BootstrapParams, runc, runtimeoptions::Options};

/// Most bytes that are read.
const LIMIT: usize = 1 << 20;
/// Longest wait for the end of the input: containerd closes it at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// The type of the options that `[...runtimes.X.options]` in containerd's configuration becomes.
const OPTIONS: &str = "runtimeoptions.v1.Options";
/// The type of runc's options, which clients may send whatever the shim.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// Where the configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ConfigSource {
    /// The usual places.
    #[default]
    Default,
    /// A file.
    File(PathBuf),
    /// The text itself.
    Text(String),
}

/// What was on standard input.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Input {
    /// The configuration that the options name.
    pub(crate) config: ConfigSource,
    /// Where events go, if containerd says so here.
    pub(crate) ttrpc_address: Option<String>,
    /// The cgroup that the shim is to run in, as a path below the root of the cgroups' file systems.
    pub(crate) shim_cgroup: Option<String>,
}

/// Standard input makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// It can't be read.
    #[error("standard input: {0}")]
    Read(#[from] io::Error),
    /// Too long.
    #[error("standard input: more than {LIMIT} bytes")]
    TooLong,
    /// Not what containerd sends.
    #[error("standard input: {len} bytes are neither runtime options nor bootstrap parameters: {error}")]
    Format {
        /// Their number.
        len: usize,
        /// Why not.
        error: protobuf::Error,
    },
    /// The options can't be decoded.
    #[error("runtime options ({kind}): {error}")]
    Options {
        /// Their type.
        kind: &'static str,
        /// Why not.
        error: protobuf::Error,
    },
    /// The configuration in them is not text.
    #[error("runtime options: config_body is not UTF-8: {0}")]
    Body(#[from] std::string::FromUtf8Error),
}

impl Input {
    /// Decodes standard input. `namespace` and `id` are those of the command line: an `Any` can look like
    /// bootstrap parameters, but those repeat them.
    pub(crate) fn decode(bytes: &[u8], namespace: &str, id: &str) -> Result<Self, InputError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        if let Ok(params) = BootstrapParams::parse_from_bytes(bytes)
            && params.instance_id == id
            && params.namespace == namespace
        {
            let mut input = Self::default();
            for any in params.extensions.iter().filter_map(|extension| extension.value.as_ref()) {
                input.take_options(any)?;
            }
            input.ttrpc_address = Some(params.containerd_ttrpc_address).filter(|address| !address.is_empty());
            return Ok(input);
        }
        let any =
            Any::parse_from_bytes(bytes).map_err(|error| InputError::Format { len: bytes.len(), error })?;
        let mut input = Self::default();
        input.take_options(&any)?;
        Ok(input)
    }

    /// Of runc's options, which nerdctl sends to a runtime it takes for runc, only what is about the shim itself means
    /// anything here. Options of other types are other shims'.
    fn take_options(&mut self, any: &Any) -> Result<(), InputError> {
        match any.type_url.rsplit('/').next() {
            Some(OPTIONS) => {
                let options = Options::parse_from_bytes(&any.value)
                    .map_err(|error| InputError::Options { kind: OPTIONS, error })?;
                self.config = config_of(options)?;
            }
            Some(RUNC_OPTIONS) => {
                let options = runc::Options::parse_from_bytes(&any.value)
                    .map_err(|error| InputError::Options { kind: RUNC_OPTIONS, error })?;
                self.shim_cgroup = Some(options.shim_cgroup).filter(|path| !path.is_empty());
            }
            _ => {}
        }
        Ok(())
    }
}

fn config_of(options: Options) -> Result<ConfigSource, InputError> {
    if !options.config_path.is_empty() {
        return Ok(ConfigSource::File(options.config_path.into()));
    }
    let text = String::from_utf8(options.config_body)?;
    Ok(if text.trim().is_empty() { ConfigSource::Default } else { ConfigSource::Text(text) })
}

/// Reads to the end, but never waits long: run by hand, standard input may be a terminal.
pub(crate) fn read(input: impl AsFd) -> Result<Vec<u8>, InputError> {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [rustix::event::PollFd::new(&input, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(bytes),
            Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        match rustix::io::read(&input, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::BADF) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if bytes.len() > LIMIT {
            return Err(InputError::TooLong);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;
    use skep_containerd_api::bootstrap::Extension;

    fn options(path: &str, body: &str) -> Any {
        let options = Options { config_path: path.into(), config_body: body.into(), ..Options::default() };
        Any { type_url: OPTIONS.into(), value: options.write_to_bytes().unwrap(), ..Any::default() }
    }

    #[test]
    fn nothing_is_the_default() {
        assert_eq!(Input::decode(b"", "ns", "id").unwrap(), Input::default());
    }

    #[test]
    fn options_in_an_any() {
        let decode = |any: &Any| Input::decode(&any.write_to_bytes().unwrap(), "ns", "id").unwrap().config;
        assert_eq!(decode(&options("/etc/x.toml", "")), ConfigSource::File("/etc/x.toml".into()));
        assert_eq!(decode(&options("", "[log]")), ConfigSource::Text("[log]".into()));
        assert_eq!(decode(&options("", " ")), ConfigSource::Default);
        let mut prefixed = options("/p", "");
        prefixed.type_url = format!("type.googleapis.com/{OPTIONS}");
        assert_eq!(decode(&prefixed), ConfigSource::File("/p".into()));
        let foreign = Any { type_url: "example.v1.Options".into(), value: vec![8, 1], ..Any::default() };
        assert_eq!(decode(&foreign), ConfigSource::Default);
    }

    #[test]
    fn the_shims_cgroup_among_runcs_options() {
        let decode = |options: &runc::Options| {
            let value = options.write_to_bytes().unwrap();
            let any = Any { type_url: RUNC_OPTIONS.into(), value, ..Any::default() };
            Input::decode(&any.write_to_bytes().unwrap(), "ns", "id").unwrap()
        };
        let options = runc::Options { shim_cgroup: "/shims/a".into(), ..runc::Options::default() };
        assert_eq!(decode(&options).shim_cgroup.as_deref(), Some("/shims/a"));
        assert_eq!(decode(&runc::Options::default()), Input::default());
        // What runc alone can follow is passed over: field 6, BinaryName.
        let any = Any { type_url: RUNC_OPTIONS.into(), value: b"\x32\x04crun".into(), ..Any::default() };
        assert_eq!(Input::decode(&any.write_to_bytes().unwrap(), "ns", "id").unwrap(), Input::default());
    }

    #[test]
    fn options_in_bootstrap_parameters() {
        let params = BootstrapParams {
            instance_id: "id".into(),
            namespace: "ns".into(),
            containerd_ttrpc_address: "/run/c.ttrpc".into(),
            extensions: vec![
                Extension::default(),
                Extension { value: MessageField::some(options("/etc/x.toml", "")), ..Extension::default() },
            ],
            ..BootstrapParams::default()
        };
        let bytes = params.write_to_bytes().unwrap();
        let input = Input::decode(&bytes, "ns", "id").unwrap();
        assert_eq!(input.config, ConfigSource::File("/etc/x.toml".into()));
        assert_eq!(input.ttrpc_address.as_deref(), Some("/run/c.ttrpc"));
    }

    /// Both begin with two strings: only the command line tells them apart.
    #[test]
    fn an_any_is_not_taken_for_bootstrap_parameters() {
        let any = options("/etc/x.toml", "");
        let bytes = any.write_to_bytes().unwrap();
        assert!(BootstrapParams::parse_from_bytes(&bytes).is_ok());
        assert_eq!(
            Input::decode(&bytes, "ns", "id").unwrap().config,
            ConfigSource::File("/etc/x.toml".into())
        );
    }

    #[test]
    fn rubbish_is_refused() {
        let error = Input::decode(b"{\"version\":3}", "ns", "id").unwrap_err().to_string();
        assert!(error.contains("13 bytes"), "{error}");
        let any = Any { type_url: OPTIONS.into(), value: vec![0xff], ..Any::default() };
        assert!(Input::decode(&any.write_to_bytes().unwrap(), "ns", "id").is_err());
    }

    #[test]
    fn reading_ends() {
        use std::io::Write;
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"abc").unwrap();
        // The writer stays open: what has come is taken after a while.
        assert_eq!(read(&reader).unwrap(), b"abc");
        writer.write_all(b"def").unwrap();
        drop(writer);
        assert_eq!(read(&reader).unwrap(), b"def");
    }
}
