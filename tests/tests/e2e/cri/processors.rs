//! Processors of the host that a pod's containers are given, as kubelet's static policy does it: with runc, and with Skep
//! both ways.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skep_tests::cri::{Cri, Handler};
use skep_tests::suite::Lease;

use super::{FOREVER, figures};

pub(super) fn named(lease: &mut Lease, handler: Handler) -> Result<()> {
    let cri = Cri::start(lease.build()?)?;
    let parent = format!("{}-pods/pinned", cri.containerd.namespace());
    figures::make(&parent)?;
    let before = cri.census()?;
    let pod = cri.pod(handler, "pinned", &json!({ "linux": { "cgroup_parent": format!("/{parent}") } }))?;
    // Whose processes show where a container runs: its own, or its pod's VMM.
    let place = |container: &str| match handler {
        Handler::Runc => format!("{parent}/{container}"),
        Handler::Container | Handler::Sandbox => format!("{parent}/{}", pod.id),
    };
    let on = |processors: &str| json!({ "linux": { "resources": { "cpuset_cpus": processors, "cpuset_mems": "0" } } });
    // A VM of one virtual CPU has none of that number, where the host has more.
    let last = allowed_to("/proc/self/status")?;
    let last = last.rsplit([',', '-']).next().context("no processor")?;

    let first = pod.run(&cri, "first", FOREVER, &on(last))?;
    let processors = cri.exec(&first, "nproc")?;
    ensure!(processors.code() == 0 && processors.out().trim() == "1", "{}", processors.describe());
    ensure!(where_it_runs(&place(&first))? == [last], "{:?}", where_it_runs(&place(&first))?);
    cri.said(&format!("update --cpuset-cpus 0 {first}"))?;
    ensure!(where_it_runs(&place(&first))? == ["0"], "{:?}", where_it_runs(&place(&first))?);

    let second = pod.run(&cri, "second", FOREVER, &on(last))?;
    let both = match last {
        "0" => "0".to_owned(),
        "1" => "0-1".to_owned(),
        last => format!("0,{last}"),
    };
    let (of_first, of_second) = match handler {
        Handler::Runc => ("0", last),
        Handler::Container | Handler::Sandbox => (both.as_str(), both.as_str()),
    };
    ensure!(where_it_runs(&place(&first))? == [of_first], "{:?}", where_it_runs(&place(&first))?);
    ensure!(where_it_runs(&place(&second))? == [of_second], "{:?}", where_it_runs(&place(&second))?);
    cri.said(&format!("rm --force {second}"))?;
    ensure!(where_it_runs(&place(&first))? == ["0"], "{:?}", where_it_runs(&place(&first))?);

    let refused = pod.run(&cri, "nowhere", FOREVER, &on("4000")).err().context("processor 4000 was taken")?;
    ensure!(format!("{refused:#}").contains("cpuset.cpus"), "{refused:#}");
    ensure!(where_it_runs(&place(&first))? == ["0"], "{:?}", where_it_runs(&place(&first))?);
    pod.remove(&cri)?;
    before.settle(&cri.containerd.scope())?;
    figures::remove(&parent)
}

/// The processors that threads in a cgroup may use, each set once.
fn where_it_runs(cgroup: &str) -> Result<Vec<String>> {
    let places = crate::host_cgroup::places(cgroup);
    let place = places.first().with_context(|| format!("there is no cgroup {cgroup}"))?;
    let mut all = Vec::new();
    for pid in fs::read_to_string(place.join("cgroup.procs"))?.lines() {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            all.push(allowed_to(&thread?.path().join("status").to_string_lossy())?);
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

fn allowed_to(status: &str) -> Result<String> {
    let text = fs::read_to_string(status).with_context(|| format!("reading {status}"))?;
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list.with_context(|| format!("no processors in {status}"))?.trim().to_owned())
}
