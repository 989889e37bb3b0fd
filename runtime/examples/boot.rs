//! Boots a sandbox, shows how long each phase took, and destroys it: `boot [CONFIG] [COUNT] [PAUSE] [linux|freebsd]`.
//! With PAUSE its VM is stopped for as many seconds, and what is left of that in the guest's clock is shown.

use std::path::PathBuf;

use anyhow::Context as _;
use skep::config::{Config, PodOptions};
use skep::guest::GuestOs;
use skep::sandbox::{Sandbox, SandboxRequest};
use skep_protocol::api::SetClockRequest;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let config = Config::load(arguments.next().map(PathBuf::from).as_deref())?;
    let count: usize = arguments.next().map_or(Ok(1), |n| n.parse()).context("COUNT")?;
    let pause: u64 = arguments.next().map_or(Ok(0), |n| n.parse()).context("PAUSE")?;
    let os = match arguments.next().as_deref() {
        None | Some("linux") => GuestOs::Linux,
        Some("freebsd") => GuestOs::FreeBsd,
        Some(other) => anyhow::bail!("{other} is no guest's system"),
    };
    for n in 0..count {
        let request = SandboxRequest {
            namespace: "example".into(),
            id: format!("boot-{}-{n}", std::process::id()),
            os,
            hostname: Some("skep".into()),
            options: PodOptions::defaults(&config),
            network: skep::network::NetworkRequest::Own,
            settings: skep::sandbox::GuestSettings::default(),
            cgroup: None,
        };
        let sandbox = Sandbox::create(&config, request).await?;
        let phases: Vec<String> = sandbox
            .timings()
            .marks()
            .iter()
            .map(|mark| format!("{} {}.{:03} ms", mark.name, mark.at_us / 1000, mark.at_us % 1000))
            .collect();
        println!("{}: {}", sandbox.vm().acceleration(), phases.join(", "));
        if pause > 0 {
            sandbox.pause().await?;
            tokio::time::sleep(std::time::Duration::from_secs(pause)).await;
            sandbox.resume().await?;
            let now = i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_nanos())?;
            let clock = SetClockRequest { realtime_ns: now, ..SetClockRequest::default() };
            let behind = now - sandbox.session().agent().set_clock(&clock).await?.was_ns;
            println!("{} ms behind after {pause} s", behind / 1_000_000);
        }
        let asked = std::time::Instant::now();
        sandbox.destroy().await?;
        println!("destroyed in {} ms; {}", asked.elapsed().as_millis(), sandbox.wait_exit().await);
    }
    Ok(())
}
