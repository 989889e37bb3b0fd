//! The end-to-end suite: a real containerd, real containers, with Skep and with runc as the measure.
//!
//! Every case runs on a containerd of its own for its time, and fails unless the census after it equals the one before:
//! processes, mounts, cgroups, files, sockets, links and containerd's own descriptors.
//!
//! A filter may be several words with commas between them: cases whose names contain one of them run, in the
//! order of the words.

mod bad_input;
mod basics;
mod calls;
mod cni;
#[cfg(target_os = "linux")]
mod cnitool;
mod confinement;
mod console;
mod cri;
mod doctor;
mod failures;
#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "freebsd")]
mod freebsd_dhcp;
#[cfg(target_os = "freebsd")]
mod freebsd_guest;
#[cfg(target_os = "freebsd")]
mod freebsd_network;
mod hooks;
mod host_cgroup;
mod lifecycle;
mod nerdctl;
mod network;
mod pods;
mod resources;
mod rootfs;
#[cfg(target_os = "linux")]
mod shim_cgroup;
#[cfg(target_os = "linux")]
mod skep_cni;
#[cfg(target_os = "linux")]
mod stand_in;
mod stdio;
mod volumes;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use skep_tests::containerd_versions::Line;
use skep_tests::ctr::Runtime;
use skep_tests::process;
use skep_tests::suite::{Lease, Suite};

/// More VMs at once than this only take processors from each other. On FreeBSD the machine's VMs are counted.
const THREADS: usize = if cfg!(target_os = "linux") { 2 } else { 1 };

/// How often a case may be tried with runc, where it is the case that is under test. On a busy machine ctr loses the
/// output of a process that ends before ctr has opened its fifo, and containerd 2.1's own shim ends before it has sent
/// its last event.
const RUNC_ATTEMPTS: u32 = 3;

/// The version that cases run on which do not differ by version.
const USUAL: &[Line] = &[Line::USUAL];

/// One case of the suite.
struct Case {
    name: &'static str,
    lines: &'static [Line],
    runtimes: &'static [Runtime],
    /// Whether it runs on FreeBSD hosts, too: there with Skep alone, as there is no runc.
    freebsd: bool,
    run: fn(&mut Lease) -> Result<()>,
}

impl Case {
    /// A case for both runtimes.
    const fn both(name: &'static str, run: fn(&mut Lease) -> Result<()>) -> Self {
        Self { name, lines: USUAL, runtimes: &[Runtime::Skep, Runtime::Runc], freebsd: false, run }
    }

    /// A case about what only Skep has.
    const fn skep(name: &'static str, run: fn(&mut Lease) -> Result<()>) -> Self {
        Self { name, lines: USUAL, runtimes: &[Runtime::Skep], freebsd: false, run }
    }

    /// The same with every version of containerd.
    const fn everywhere(mut self) -> Self {
        self.lines = &Line::ALL;
        self
    }

    /// The same on FreeBSD hosts.
    const fn on_freebsd(mut self) -> Self {
        self.freebsd = true;
        self
    }

    /// With what it runs on this host.
    fn combinations(&self) -> Vec<(Line, Runtime)> {
        let all = self.lines.iter().flat_map(|line| self.runtimes.iter().map(|runtime| (*line, *runtime)));
        if cfg!(target_os = "linux") {
            return all.collect();
        }
        all.filter(|(line, runtime)| self.freebsd && (*line, *runtime) == (Line::USUAL, Runtime::Skep))
            .collect()
    }
}

fn main() -> ExitCode {
    #[cfg(target_os = "freebsd")]
    if let Some(code) = freebsd_dhcp::serves() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    if let Err(error) = process::catch_interrupts() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    let suite = Arc::new(Suite::default());
    let cases = [
        basics::CASES,
        stdio::CASES,
        #[cfg(target_os = "linux")]
        stand_in::CASES,
        hooks::CASES,
        pods::CASES,
        volumes::CASES,
        confinement::CASES,
        rootfs::CASES,
        lifecycle::CASES,
        calls::CASES,
        #[cfg(target_os = "linux")]
        shim_cgroup::CASES,
        host_cgroup::CASES,
        resources::CASES,
        network::CASES,
        cni::CASES,
        #[cfg(target_os = "linux")]
        skep_cni::CASES,
        #[cfg(target_os = "linux")]
        cnitool::CASES,
        nerdctl::CASES,
        cri::CASES,
        failures::CASES,
        console::CASES,
        bad_input::CASES,
        doctor::CASES,
        #[cfg(target_os = "freebsd")]
        freebsd::CASES,
        #[cfg(target_os = "freebsd")]
        freebsd_guest::cases(),
        #[cfg(target_os = "freebsd")]
        freebsd_network::CASES,
        #[cfg(target_os = "freebsd")]
        freebsd_dhcp::CASES,
    ];
    let mut trials: Vec<Trial> = cases.into_iter().flatten().flat_map(|case| trials(case, &suite)).collect();
    // Several of them, since a machine that has to be booted first is booted for all.
    if let Some(list) = arguments.filter.take_if(|filter| filter.contains(',')) {
        let wanted: Vec<&str> = list.split(',').filter(|word| !word.is_empty()).collect();
        let place = |trial: &Trial| wanted.iter().position(|word| trial.name().contains(word));
        trials.retain(|trial| place(trial).is_some());
        trials.sort_by_key(place);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The last owner: the containerds end before this process does.
    drop(suite);
    conclusion.exit_code()
}

fn trials(case: &'static Case, suite: &Arc<Suite>) -> Vec<Trial> {
    let trials = case.combinations().into_iter().map(|(line, runtime)| {
        let suite = Arc::clone(suite);
        Trial::test(format!("{runtime}::{line}::{}", case.name), move || {
            let mut attempt = 1;
            loop {
                process::check_interrupt()?;
                let outcome = suite.case(line, runtime, case.run);
                match outcome {
                    Err(error) if runtime == Runtime::Runc && attempt < RUNC_ATTEMPTS => {
                        eprintln!("{runtime}::{line}::{}, attempt {attempt}: {error:#}", case.name);
                        attempt += 1;
                    }
                    Err(error) => {
                        // The machine that this runs on may not live to the end, when failures are told.
                        if cfg!(target_os = "freebsd") {
                            eprintln!("{error:#}");
                        }
                        return Err(format!("{error:#}").into());
                    }
                    Ok(()) => return Ok(()),
                }
            }
        })
    });
    trials.collect()
}
