//! From a call to its answer.

use std::io::Read;

use serde_json::{Value, json};

use super::config::version_of;
use super::{AddResult, CniError, CniVersion, Command, ConfigError, Invocation, NetConf, VersionError};
use crate::datapath::Host;
use crate::plugin::Plugin;

/// What the process prints and ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// On standard output; nothing for a DEL that succeeded.
    pub output: Option<Value>,
    /// Whether the call succeeded.
    pub success: bool,
}

/// A configuration with a list of thousands of attachments fits many times.
const MAX_INPUT: u64 = 64 << 20;

/// Serves one call.
pub fn run(get: impl Fn(&str) -> Option<String>, input: impl Read) -> Outcome {
    let mut config = Vec::new();
    let read = input.take(MAX_INPUT).read_to_end(&mut config);
    let version = version_of(&config);
    let result = match read {
        Ok(_) => serve(get, &config),
        Err(error) => Err(CniError::Stdin(error)),
    };
    match result {
        Ok(output) => Outcome { output, success: true },
        Err(error) => Outcome { output: Some(error.to_json(version)), success: false },
    }
}

fn serve(get: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Option<Value>, CniError> {
    let call = Invocation::parse(get)?;
    if call.command == Command::Version {
        let supported: Vec<&str> = CniVersion::ALL.iter().map(|version| version.as_str()).collect();
        return Ok(Some(json!({ "cniVersion": version_of(input).as_str(), "supportedVersions": supported })));
    }
    let conf = match call.command {
        Command::Del => NetConf::parse_for_removal(input)?,
        _ => NetConf::parse(input)?,
    };
    let since = match call.command {
        Command::Check => CniVersion::V0_4_0,
        Command::Gc | Command::Status => CniVersion::V1_1_0,
        Command::Add | Command::Del | Command::Version => CniVersion::V0_3_0,
    };
    if conf.version < since {
        let text = format!("{} (this command is of {since})", conf.version);
        return Err(ConfigError::Version(VersionError(text)).into());
    }
    let host = Host::new().map_err(|error| match call.command {
        Command::Status => CniError::NotReady(error.to_string()),
        _ => error.into(),
    })?;
    let plugin = Plugin::new(&host, &call, &conf);
    match (call.command, &call.attach) {
        (Command::Add, Some(attach)) => plugin.add(attach).map(|result| Some(printed(&conf, &result))),
        (Command::Del, Some(attach)) => plugin.del(attach).map(|()| None),
        (Command::Check, Some(attach)) => plugin.check(attach).map(|()| None),
        (Command::Gc, _) => plugin.gc().map(|()| None),
        (Command::Status, _) => plugin.status().map(|()| None),
        // The environment's parser gives these commands an attachment.
        (Command::Add | Command::Del | Command::Check | Command::Version, _) => Ok(None),
    }
}

/// What another plugin of the chain made is told as it told it, with what only it knows.
fn printed(conf: &NetConf, result: &AddResult) -> Value {
    let same_version = |raw: &&Value| raw["cniVersion"] == conf.version.as_str();
    conf.prev_raw.as_ref().filter(same_version).cloned().unwrap_or_else(|| result.to_json(conf.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(verb: &str, input: &str) -> Outcome {
        run(|name| (name == "CNI_COMMAND").then(|| verb.to_owned()), input.as_bytes())
    }

    #[test]
    fn version_needs_no_network() {
        let outcome = call("VERSION", r#"{"cniVersion":"0.4.0"}"#);
        assert!(outcome.success);
        let output = outcome.output.unwrap();
        assert_eq!(output["cniVersion"], "0.4.0");
        assert_eq!(output["supportedVersions"][4], "1.1.0");
    }

    #[test]
    fn errors_have_the_specifications_codes_and_the_callers_version() {
        for (verb, input, code) in [
            ("ADD", "{}", 4),
            ("NONE", "{}", 4),
            ("STATUS", r#"{"cniVersion":"9.9.9","name":"a","type":"skep-cni"}"#, 1),
            ("STATUS", r#"{"cniVersion":"1.0.0","name":"a","type":"skep-cni"}"#, 1),
            ("STATUS", "{", 6),
            ("STATUS", r#"{"cniVersion":"1.1.0","type":"skep-cni"}"#, 7),
            ("STATUS", r#"{"cniVersion":"1.1.0","name":"a","type":"skep-cni","oops":1}"#, 2),
        ] {
            let outcome = call(verb, input);
            assert!(!outcome.success);
            assert_eq!(outcome.output.unwrap()["code"], code, "{verb} {input}");
        }
        let output = call("ADD", r#"{"cniVersion":"0.3.1"}"#).output.unwrap();
        assert_eq!(output["cniVersion"], "0.3.1");
    }
}
