//! `skep list`: sandboxes and what their VMs cost.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use skep::config::Config;
use skep::sandbox::{self, Cost};

/// One sandbox.
#[derive(Serialize)]
struct Row {
    directory: PathBuf,
    namespace: Option<String>,
    id: Option<String>,
    /// The process that looks after it.
    owner: Option<u32>,
    /// Whether that process lives.
    used: bool,
    /// What its VM's process has used of this host; nothing while none runs.
    vmm: Option<Cost>,
}

/// Lists them, as a table or as JSON.
pub(crate) fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut rows = Vec::new();
    for listed in sandbox::list(config)? {
        let record = match listed.record {
            Ok(record) => record,
            Err(e) => {
                eprintln!("skep: {e}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        let (namespace, id, owner) = match record {
            Some(record) => (Some(record.namespace), Some(record.id), Some(record.owner.pid)),
            None => (None, None, None),
        };
        rows.push(Row { directory: listed.dir, namespace, id, owner, used: listed.owned, vmm: listed.cost });
    }
    let text = if json { serde_json::to_string_pretty(&rows)? } else { table(&rows) };
    // Whoever reads may have heard enough.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(code)
}

fn table(rows: &[Row]) -> String {
    let line = |[directory, namespace, owner, state, cpu, memory, id]: [&str; 7]| {
        format!("{directory:<18} {namespace:<12} {owner:<8} {state:<6} {cpu:>10} {memory:>12} {id}")
    };
    let mut lines = vec![line(["DIRECTORY", "NAMESPACE", "OWNER", "STATE", "CPU", "MEMORY", "ID"])];
    for row in rows {
        let directory = row.directory.file_name().unwrap_or_default().to_string_lossy();
        let owner = row.owner.map(|pid| pid.to_string());
        let (cpu, memory) =
            row.vmm.map(|cost| (seconds(cost.processor_us), mebibytes(cost.resident_bytes))).unzip();
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        lines.push(line([
            &directory,
            &or_dash(&row.namespace),
            &or_dash(&owner),
            if row.used { "used" } else { "left" },
            &or_dash(&cpu),
            &or_dash(&memory),
            &or_dash(&row.id),
        ]));
    }
    lines.join("\n")
}

fn seconds(us: u64) -> String {
    format!("{}.{} s", us / 1_000_000, us / 100_000 % 10)
}

fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_a_dash() {
        let row = |id: Option<&str>, vmm| Row {
            directory: "/run/skep/sb/0123".into(),
            namespace: id.map(|_| "default".to_owned()),
            id: id.map(str::to_owned),
            owner: id.map(|_| 7),
            used: id.is_some(),
            vmm,
        };
        let cost = Cost { processor_us: 12_345_678, resident_bytes: (87 << 20) + (1 << 19) };
        let text = table(&[row(Some("web 1"), Some(cost)), row(None, None)]);
        let words = |n: usize| text.lines().nth(n).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(0), "DIRECTORY NAMESPACE OWNER STATE CPU MEMORY ID");
        assert_eq!(words(1), "0123 default 7 used 12.3 s 87.5 MiB web 1");
        assert_eq!(words(2), "0123 - - left - - -");
    }
}
