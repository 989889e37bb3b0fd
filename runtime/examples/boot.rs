//! Boots a sandbox, shows how long each phase took, and destroys it: `boot [CONFIG] [COUNT]`.

use std::path::PathBuf;

use anyhow::Context as _;
use skep::config::{Config, PodOptions};
use skep::sandbox::{Sandbox, SandboxRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let config = Config::load(arguments.next().map(PathBuf::from).as_deref())?;
    let count: usize = arguments.next().map_or(Ok(1), |n| n.parse()).context("COUNT")?;
    for n in 0..count {
        let request = SandboxRequest {
            namespace: "example".into(),
            id: format!("boot-{}-{n}", std::process::id()),
            hostname: Some("skep".into()),
            options: PodOptions::defaults(&config),
        };
        let sandbox = Sandbox::create(&config, request).await?;
        let phases: Vec<String> = sandbox
            .timings()
            .marks()
            .iter()
            .map(|mark| format!("{} {}.{:03} ms", mark.name, mark.at_us / 1000, mark.at_us % 1000))
            .collect();
        println!("{}: {}", sandbox.vm().acceleration(), phases.join(", "));
        let asked = std::time::Instant::now();
        sandbox.destroy().await?;
        println!("destroyed in {} ms; {}", asked.elapsed().as_millis(), sandbox.wait_exit().await);
    }
    Ok(())
}
