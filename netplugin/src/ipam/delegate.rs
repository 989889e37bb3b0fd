//! Calling another plugin for addresses.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::IpamError;
use crate::cni::AddResult;

/// DHCP may need several tries of several seconds; a plugin that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(90);
/// No result is larger.
const MAX_OUTPUT: u64 = 1 << 20;

/// Runs the plugin at `path` with `command` in `CNI_COMMAND`, the rest of our environment, and `config` on its
/// standard input. ADD gives a result, the others none.
pub fn delegate(path: &Path, command: &str, config: &[u8]) -> Result<Option<AddResult>, IpamError> {
    let failed = |why: String| IpamError::Exec { plugin: path.to_owned(), why };
    let mut child = Command::new(path)
        .env("CNI_COMMAND", command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let output = match talk(&mut child, config) {
        Ok(output) => output,
        Err(why) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(why));
        }
    };
    let status = child.wait().map_err(|error| failed(format!("cannot be waited for: {error}")))?;
    let value: Option<Value> = serde_json::from_slice(&output).ok();
    if !status.success() {
        let plugin = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let code =
            value.as_ref().and_then(|v| v.get("code")?.as_u64()).and_then(|code| u32::try_from(code).ok());
        let text =
            |key: &str| value.as_ref().and_then(|v| v.get(key)?.as_str()).unwrap_or_default().to_owned();
        let mut message = text("msg");
        if !text("details").is_empty() {
            message = format!("{message}: {}", text("details"));
        }
        if message.is_empty() {
            message = status.to_string();
        }
        return Err(IpamError::Delegate { plugin, code: code.unwrap_or(102), message });
    }
    if command != "ADD" {
        return Ok(None);
    }
    let value = value.ok_or_else(|| failed("printed no JSON".to_owned()))?;
    AddResult::from_json(&value).map(Some).map_err(|error| failed(format!("result: {error}")))
}

/// Feeds the child and reads what it prints, until it closes its output or the time is over.
fn talk(child: &mut Child, config: &[u8]) -> Result<Vec<u8>, String> {
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let config = config.to_vec();
    // A thread each: a plugin that prints before it reads must not deadlock with us.
    thread::spawn(move || {
        if let Some(stdin) = &mut stdin {
            let _ = stdin.write_all(&config);
        }
    });
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut output = Vec::new();
        let result = stdout.map_or(Ok(0), |stdout| stdout.take(MAX_OUTPUT).read_to_end(&mut output));
        let _ = sender.send(result.map(|_| output));
    });
    match receiver.recv_timeout(TIMEOUT) {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(format!("its output cannot be read: {error}")),
        Err(_) => Err(format!("gave no result within {} s", TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(dir: &Path, body: &str) -> std::path::PathBuf {
        let path = dir.join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_result_is_read_and_the_plugin_sees_command_and_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let seen = dir.path().join("seen");
        let body = format!(
            "(echo $CNI_COMMAND; cat) > {}; echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.0.0.9/24\"}}]}}'",
            seen.display()
        );
        let result = delegate(&script(dir.path(), &body), "ADD", b"config").unwrap().unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.9/24");
        assert_eq!(std::fs::read_to_string(seen).unwrap(), "ADD\nconfig");
    }

    #[test]
    fn its_error_keeps_code_and_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), "echo '{\"code\":11,\"msg\":\"later\",\"details\":\"busy\"}'; exit 1");
        match delegate(&path, "ADD", b"") {
            Err(IpamError::Delegate { code: 11, message, .. }) => assert_eq!(message, "later: busy"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            delegate(&script(dir.path(), "exit 3"), "DEL", b""),
            Err(IpamError::Delegate { code: 102, .. })
        ));
        assert!(matches!(delegate(&script(dir.path(), "echo no"), "ADD", b""), Err(IpamError::Exec { .. })));
        assert!(matches!(delegate(Path::new("/nonexistent"), "ADD", b""), Err(IpamError::Exec { .. })));
    }
}
