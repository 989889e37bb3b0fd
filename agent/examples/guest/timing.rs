//! How long the phases of a container take.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use skep_protocol::api::Stdio;
use tokio::io::AsyncReadExt as _;

use crate::spec::{sh, spec};
use crate::vm::{Vm, process, start};

/// What `timed` gives.
pub(crate) const PHASES: [&str; 15] = [
    "agent start, guest's clock",
    "agent ready, guest's clock",
    "session, ms",
    "session, cpu ms",
    "sandbox, ms",
    "sandbox, cpu ms",
    "create, ms",
    "create, cpu ms",
    "start, ms",
    "start, cpu ms",
    "first output, ms",
    "first output, cpu ms",
    "wait and delete, ms",
    "wait and delete, cpu ms",
    "agent resident, KiB",
];

/// The phases of one container's life, each from the end of the one before.
pub(crate) async fn timed(vm: &Vm) -> anyhow::Result<Vec<f64>> {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let mut last = vm.times();
    let mut laps = vec![ms(last.0), ms(last.1)];
    let mut lap = || {
        let now = vm.times();
        laps.extend([ms(now.0.saturating_sub(last.0)), ms(now.1.saturating_sub(last.1))]);
        last = now;
    };
    let sandbox = vm.sandbox().await?;
    lap();
    let token = vm.session.draw_token();
    let mut stdout = vm.session.open_stdio(token).await?;
    vm.create("t", &spec(&["/bin/echo", "hello"]), Stdio { stdout: token, ..Stdio::new() }, false).await?;
    lap();
    vm.agent().start_process(&start("t", "")).await?;
    lap();
    let mut text = [0; 5];
    stdout.read_exact(&mut text).await?;
    lap();
    vm.agent().wait_process(&process("t", "")).await?;
    vm.agent().delete_process(&process("t", "")).await?;
    lap();
    let mut spec = sh("/bin/grep VmRSS /agent/1/status | /bin/tr -dc 0-9");
    let mounts = spec["mounts"].as_array_mut().context("mounts")?;
    mounts.push(
        json!({"destination": "/agent", "type": "bind", "source": "/proc", "options": ["rbind", "ro"]}),
    );
    let resident = vm.run("rss", &spec, false).await?.stdout.parse()?;
    #[allow(clippy::cast_precision_loss)]
    let mut row = vec![sandbox.agent_started_ns as f64 / 1e6, sandbox.agent_ready_ns as f64 / 1e6];
    row.extend(laps);
    row.push(resident);
    Ok(row)
}
