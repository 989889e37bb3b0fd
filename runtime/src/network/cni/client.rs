//! Running the plugins of a network: ADD, CHECK and DEL.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use skep_cni::cni::AddResult;

use super::{CniError, NetworkList};
use crate::journal::{CniAttachment, Entry, EntryId, Journal, Program};

/// No result is larger.
const MOST_OUTPUT: usize = 1 << 20;
/// Role of a plugin's process.
const ROLE: &str = "cni";

/// Makes an interface. Before the first plugin runs it is in the journal; when this fails it stays there, for whoever
/// undoes the sandbox.
pub(crate) async fn add(mut attachment: CniAttachment, journal: &Journal) -> Result<AddResult, CniError> {
    let list = NetworkList::read(attachment.list.clone()).map_err(CniError::Record)?;
    let (begins, ends) = ends(&list);
    // One that is not there would be missed again when all is undone.
    for plugin in list.plugins() {
        find(&list, &attachment.path, plugin)?;
    }
    let asked = record(journal, &attachment)?;
    let mut result = None;
    for number in 0..list.plugins().len() {
        result = call("ADD", &attachment, &list, number, result.as_ref(), Some(journal)).await?;
    }
    let wrong = |reason: String| CniError::Result { network: list.name().into(), plugin: ends, reason };
    let Some(result) = result else { return Err(wrong("it printed none".into())) };
    let parsed = AddResult::from_json(&result).map_err(|error| wrong(error.to_string()))?;
    tracing::debug!(network = list.name(), plugin = begins, interface = attachment.ifname, "made");
    attachment.result = Some(result);
    record(journal, &attachment)?;
    journal.strike(asked)?;
    Ok(parsed)
}

fn ends(list: &NetworkList) -> (String, String) {
    let name = |plugin: Option<&str>| plugin.unwrap_or_default().to_owned();
    (name(list.plugins().next()), name(list.plugins().next_back()))
}

fn record(journal: &Journal, attachment: &CniAttachment) -> Result<EntryId, CniError> {
    Ok(journal.record(Entry::Cni { attachment: Box::new(attachment.clone()) })?)
}

/// Removes an interface: every plugin is asked, the last first, whatever others answer.
pub async fn delete(attachment: &CniAttachment, journal: Option<&Journal>) -> Result<(), CniError> {
    let list = NetworkList::read(attachment.list.clone()).map_err(CniError::Record)?;
    let previous = attachment.result.as_ref().filter(|_| list.result_for_delete());
    let mut errors = Vec::new();
    for number in (0..list.plugins().len()).rev() {
        errors.extend(call("DEL", attachment, &list, number, previous, journal).await.err());
    }
    CniError::collect(errors)
}

/// Asks the plugins whether an interface is as ADD has left it; whether they could be asked.
pub async fn check(attachment: &CniAttachment) -> Result<bool, CniError> {
    let list = NetworkList::read(attachment.list.clone()).map_err(CniError::Record)?;
    let Some(previous) = attachment.result.as_ref().filter(|_| list.can_check()) else { return Ok(false) };
    for number in 0..list.plugins().len() {
        call("CHECK", attachment, &list, number, Some(previous), None).await?;
    }
    Ok(true)
}

/// Undoes an entry of a journal. Blocks.
pub(crate) fn undo(attachment: &CniAttachment, journal: &Journal) -> Result<(), CniError> {
    let interrupted = |error: std::io::Error| CniError::Interrupted(error.to_string());
    // The caller may be a thread that drives others' futures and must not wait for ours.
    std::thread::scope(|scope| {
        let work = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(interrupted)?
                .block_on(delete(attachment, Some(journal)))
        };
        scope.spawn(work).join().unwrap_or_else(|_| Err(CniError::Interrupted("a panic".into())))
    })
}

async fn call(
    command: &'static str,
    attachment: &CniAttachment,
    list: &NetworkList,
    number: usize,
    previous: Option<&Value>,
    journal: Option<&Journal>,
) -> Result<Option<Value>, CniError> {
    let plugin = list.plugins().nth(number).unwrap_or_default();
    let (network, name) = (list.name(), plugin.to_owned());
    let path = find(list, &attachment.path, plugin)?;
    let program = Program {
        role: ROLE,
        command: environment(command, attachment, &path),
        input: list.request(number, &attachment.capabilities, previous).to_string().into_bytes(),
        output: Some(MOST_OUTPUT),
        limit: Duration::from_secs(attachment.limit_s),
    };
    tracing::debug!(network, plugin, command, interface = attachment.ifname, "CNI");
    let ended = program.run(journal).await.map_err(|source| CniError::Program {
        network: network.into(),
        command,
        plugin: name.clone(),
        source,
    })?;
    if !ended.status.success() {
        let (code, message) = refusal(&ended.output);
        let message = match (message.is_empty(), ended.said.is_empty()) {
            (false, _) => message,
            (true, false) => format!("{}: {}", ended.status, ended.said),
            (true, true) => ended.status.to_string(),
        };
        return Err(CniError::Refused { network: network.into(), command, plugin: name, code, message });
    }
    if !ended.said.is_empty() {
        tracing::debug!(network, plugin, command, "it says: {}", ended.said);
    }
    if command != "ADD" {
        return Ok(None);
    }
    let value = serde_json::from_slice(&ended.output).map_err(|error| CniError::Result {
        network: network.into(),
        plugin: name,
        reason: error.to_string(),
    })?;
    Ok(Some(value))
}

fn environment(command: &'static str, attachment: &CniAttachment, program: &Path) -> Command {
    let mut call = Command::new(program);
    call.env_clear()
        .env("PATH", crate::hypervisor::search_path())
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", &attachment.ifname)
        .env("CNI_ARGS", &attachment.args)
        .current_dir("/");
    if let Ok(path) = std::env::join_paths(&attachment.path) {
        call.env("CNI_PATH", path);
    }
    call
}

fn find(list: &NetworkList, dirs: &[PathBuf], plugin: &str) -> Result<PathBuf, CniError> {
    dirs.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file()).ok_or_else(|| CniError::NoPlugin {
        network: list.name().into(),
        plugin: plugin.into(),
        dirs: dirs.to_vec(),
    })
}

/// What a plugin prints when it refuses (section 5, "Error").
fn refusal(output: &[u8]) -> (u64, String) {
    let value: Value = serde_json::from_slice(output).unwrap_or_default();
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let message = match (text("msg"), text("details")) {
        (message, "") => message.to_owned(),
        ("", details) => details.to_owned(),
        (message, details) => format!("{message}: {details}"),
    };
    (value.get("code").and_then(Value::as_u64).unwrap_or_default(), message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    /// A directory of plugins that note what they are asked and do as they are told.
    struct Plugins {
        dir: tempfile::TempDir,
        journal: Journal,
    }

    impl Plugins {
        fn new(plugins: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, script) in plugins {
                let path = dir.path().join(name);
                let log = dir.path().join("log");
                let text = format!(
                    "#!/bin/sh\ninput=$(cat)\n\
                     echo \"{name} $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS $CNI_PATH $input\" >>{}\n{script}\n",
                    log.display()
                );
                // Written by another process: one that has it open for writing could not run it.
                let write = format!("cat >{0} && chmod 755 {0}", path.display());
                let mut child = Command::new("sh")
                    .args(["-c", &write])
                    .stdin(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
                assert!(child.wait().unwrap().success());
                assert_eq!(path.metadata().unwrap().permissions().mode() & 0o111, 0o111);
            }
            let journal = Journal::create(&dir.path().join("journal")).unwrap();
            Self { dir, journal }
        }

        fn attachment(&self, version: &str) -> CniAttachment {
            CniAttachment {
                list: json!({ "cniVersion": version, "name": "net",
                    "plugins": [{ "type": "one" }, { "type": "two", "capabilities": { "mac": true } }] }),
                container_id: "ns-c".into(),
                netns: "/netns".into(),
                ifname: "eth0".into(),
                args: "A=1".into(),
                capabilities: json!({ "mac": "02:00:00:00:00:01" }).as_object().unwrap().clone(),
                path: vec![self.dir.path().join("none"), self.dir.path().to_owned()],
                limit_s: 60,
                result: None,
            }
        }

        /// What the plugins were asked since the last time.
        fn asked(&self) -> Vec<(String, Value)> {
            let log = self.dir.path().join("log");
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let _ = std::fs::remove_file(log);
            text.lines()
                .map(|line| {
                    let (words, input) = line.split_once(" {").unwrap();
                    (words.to_owned(), serde_json::from_str(&format!("{{{input}")).unwrap())
                })
                .collect()
        }

        fn held(&self) -> Vec<CniAttachment> {
            let entries = self.journal.entries();
            entries
                .into_iter()
                .map(|(_, entry)| match entry {
                    Entry::Cni { attachment } => *attachment,
                    other => panic!("{other}"),
                })
                .collect()
        }
    }

    const ANSWER: &str =
        r#"[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.9/24"}]}'"#;

    #[tokio::test]
    async fn results_go_down_the_chain_and_back() {
        let plugins = Plugins::new(&[
            ("one", ANSWER),
            (
                "two",
                r#"[ $CNI_COMMAND != ADD ] || echo "$input" | sed 's/.*"prevResult":\(.*\),"runtimeConfig.*/\1/'"#,
            ),
        ]);
        let result = add(plugins.attachment("1.0.0"), &plugins.journal).await.unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.9/24");
        let answer = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.9/24" }] });
        let environment = |name: &str, command: &str| {
            let dir = plugins.dir.path().display();
            format!("{name} {command} ns-c /netns eth0 A=1 {dir}/none:{dir}")
        };
        let asked = plugins.asked();
        assert_eq!(
            asked[0],
            (environment("one", "ADD"), json!({ "cniVersion": "1.0.0", "name": "net", "type": "one" }))
        );
        assert_eq!(asked[1].0, environment("two", "ADD"));
        assert_eq!(
            (&asked[1].1["prevResult"], &asked[1].1["runtimeConfig"]["mac"]),
            (&answer, &json!("02:00:00:00:00:01"))
        );
        let held = plugins.held();
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].result, Some(answer.clone()));

        assert!(check(&held[0]).await.unwrap());
        assert_eq!(
            plugins.asked().iter().map(|(words, _)| &words[..9]).collect::<Vec<_>>(),
            ["one CHECK", "two CHECK"]
        );
        undo(&held[0], &plugins.journal).unwrap();
        let asked = plugins.asked();
        assert_eq!(asked.iter().map(|(words, _)| &words[..7]).collect::<Vec<_>>(), ["two DEL", "one DEL"]);
        assert!(asked.iter().all(|(_, input)| input["prevResult"] == answer));
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_leaves_a_record_for_whoever_undoes() {
        let refuse =
            r#"[ $CNI_COMMAND = DEL ] || { echo '{"code":11,"msg":"later","details":"busy"}'; exit 1; }"#;
        let plugins = Plugins::new(&[("one", ANSWER), ("two", refuse)]);
        let error = add(plugins.attachment("0.3.1"), &plugins.journal).await.unwrap_err().to_string();
        assert_eq!(error, "CNI network net: ADD of plugin two: later: busy (code 11)");
        let held = plugins.held();
        assert_eq!((held.len(), &held[0].result), (1, &None));
        plugins.asked();
        // Nothing is known of what ADD made, and 0.3.1 would not be told.
        undo(&held[0], &plugins.journal).unwrap();
        assert!(plugins.asked().iter().all(|(_, input)| input.get("prevResult").is_none()));
        assert!(!check(&held[0]).await.unwrap());
    }

    #[tokio::test]
    async fn every_plugin_is_asked_to_remove() {
        let plugins = Plugins::new(&[("one", "echo broken >&2; exit 7"), ("two", "exit 1")]);
        let error = undo(&plugins.attachment("1.0.0"), &plugins.journal).unwrap_err().to_string();
        assert!(
            error.contains("DEL of plugin two: exit status: 1")
                && error.contains("plugin one: exit status: 7: broken"),
            "{error}"
        );
        let missing = CniAttachment { path: vec!["/plugins".into()], ..plugins.attachment("1.0.0") };
        let error = add(missing, &plugins.journal).await.unwrap_err().to_string();
        assert!(error.starts_with("CNI network net: plugin one is not in /plugins: install it"), "{error}");
        assert!(plugins.held().is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_plugin_running() {
        let plugins = Plugins::new(&[("one", "exec sleep 600"), ("two", "")]);
        let runs = async {
            while !plugins.dir.path().join("log").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            result = add(plugins.attachment("1.0.0"), &plugins.journal) => panic!("{result:?}"),
            () = runs => {}
        }
        assert_eq!(plugins.held().len(), 1, "the process is struck off, the interface is not");
        let slow = CniAttachment { limit_s: 1, ..plugins.attachment("1.0.0") };
        let error = add(slow, &plugins.journal).await.unwrap_err().to_string();
        assert!(error.contains("ADD of plugin one: killed after 1 s"), "{error}");
        for (bad, words) in [
            ("echo nonsense", "the result of plugin one"),
            ("echo '{\"ips\":1}'", "the result of plugin two"),
        ] {
            let plugins = Plugins::new(&[("one", bad), ("two", bad)]);
            let error = add(plugins.attachment("1.0.0"), &plugins.journal).await.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
