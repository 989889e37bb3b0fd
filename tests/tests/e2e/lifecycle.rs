//! Tasks and processes from create to delete, by signals, execs and restarts of containerd.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use skep_tests::census::{self, Member};
use skep_tests::containerd_versions::Line;
use skep_tests::ctr::{Runtime, Subject};
use skep_tests::events::Recorder;
use skep_tests::process::{LIMIT, wait_for};
use skep_tests::suite::Lease;
use skep_tests::vsock;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("detached", detached).on_freebsd().everywhere(),
    Case::both("exec", exec).on_freebsd().everywhere(),
    Case::both("events", events).on_freebsd().everywhere(),
    Case::both("exec_details", exec_details).on_freebsd(),
    Case::both("exec_terminal", exec_terminal).on_freebsd(),
    Case::both("execs_at_once", execs_at_once).on_freebsd(),
    Case::both("exec_errors", exec_errors).on_freebsd(),
    Case::both("signals", signals).on_freebsd(),
    Case::both("signal_to_exec", signal_to_exec).on_freebsd(),
    Case::both("signal_through_ctr", signal_through_ctr).on_freebsd(),
    Case::both("processes", processes).on_freebsd(),
    Case::both("two_at_once", two_at_once).on_freebsd(),
    Case::both("same_id_again", same_id_again).on_freebsd(),
    Case::both("containerd_restart", containerd_restart).on_freebsd().everywhere(),
    Case::both("containerd_killed", containerd_killed).on_freebsd(),
    Case::both("restarts_in_every_state", restarts_in_every_state).on_freebsd(),
    Case::both("pause", pause).on_freebsd().everywhere(),
    Case::both("kill_of_a_paused_one", kill_of_a_paused_one).on_freebsd(),
    Case::skep("round_trips", round_trips).on_freebsd(),
    Case::skep("vsock_channel", vsock_channel),
];

/// Ends with 7 when it is asked to.
const PATIENT: &str = "trap 'exit 7' TERM; echo ready; echo >/tmp/ready; while :; do sleep 0.05; done";

/// Waits until [`PATIENT`] can be asked: a signal that comes before its trap is lost on a first process.
const UNTIL_READY: &str = "until test -e /tmp/ready; do sleep 0.05; done";

fn detached(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("detached").flags(["--null-io"]).sh(PATIENT).detached()?;
    let task = subject.wait_status("detached", "RUNNING")?;
    // Signal 0 only asks whether there is one: kill(2).
    let there = kill(Pid::from_raw(i32::try_from(task.pid)?), None).is_ok();
    ensure!(there, "{task:?} is no process of the host");
    subject.exec("detached", "ready").sh(UNTIL_READY).output()?.succeeded()?;
    subject.kill("detached", "SIGTERM")?.succeeded()?;
    subject.wait_status("detached", "STOPPED")?;
    ensure!(subject.delete_task("detached")? == 7);
    ensure!(subject.task("detached")?.is_none());
    subject.remove("detached")
}

fn exec(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("host").flags(["--null-io"]).sh(PATIENT).detached()?;
    let output = subject.exec("host", "e1").sh("echo err >&2; tr a-z A-Z; exit 3").stdin("in").output()?;
    ensure!(output.code() == 3 && output.out() == "IN" && output.err() == "err\n", "{}", output.describe());
    // It is the same container: its first process is there.
    let output = subject.exec("host", "e2").args(["cat", "/proc/1/comm"]).output()?;
    ensure!(output.text()? == "sh", "{}", output.describe());
    subject.remove("host")
}

fn events(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.run("told").flags(["--null-io"]).sh(PATIENT).detached()?;
    let exec = subject.exec("told", "e1").sh(&format!("{UNTIL_READY}; exit 4")).output()?;
    ensure!(exec.code() == 4, "{}", exec.describe());
    // Has to have ended before the first process does.
    recorder.wait("told", "exit e1")?;
    let running = subject.wait_status("told", "RUNNING")?;
    subject.kill("told", "SIGTERM")?.succeeded()?;
    recorder.wait("told", "exit")?;
    ensure!(subject.delete_task("told")? == 7);
    recorder.wait("told", "delete")?;
    let summaries = recorder.summaries("told");
    let expected = ["create", "start", "exec-added e1", "exec-started e1", "exit e1", "exit", "delete"];
    ensure!(summaries == expected, "{summaries:?}");

    let find = |summary| recorder.wait("told", summary);
    let (create, start, exit, delete) = (find("create")?, find("start")?, find("exit")?, find("delete")?);
    let pid = u64::from(running.pid);
    let pids = [&create, &start, &exit, &delete].map(|event| event.number("pid"));
    ensure!(pids == [pid; 4], "{pids:?} of {running:?}");
    let bundle = lease.containerd.bundle("told");
    ensure!(create.text("bundle") == bundle.to_string_lossy(), "{create:?}");
    ensure!(exit.text("id") == "told" && exit.number("exit_status") == 7, "{exit:?}");
    ensure!(!exit.body["exited_at"].is_null() && delete.number("exit_status") == 7, "{exit:?} {delete:?}");
    let (exec_start, exec_exit) = (find("exec-started e1")?, find("exit e1")?);
    ensure!(exec_exit.number("exit_status") == 4, "{exec_exit:?}");
    ensure!(
        exec_start.number("pid") > 0 && exec_start.number("pid") == exec_exit.number("pid"),
        "{exec_start:?} {exec_exit:?}"
    );
    subject.remove("told")
}

fn exec_details(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("details").flags(["--null-io"]).sh(PATIENT).detached()?;
    let run = subject.exec("details", "e1").flags(["--user", "1000:2000", "--cwd", "/var"]);
    let output = run.sh("id -u; id -g; pwd; test $$ -gt 1 && ulimit -n; hostname >/dev/null").output()?;
    ensure!(output.text()?.starts_with("1000\n2000\n/var\n"), "{}", output.describe());
    // Their number must not matter, and their output must be their own.
    for index in 0..10 {
        let output =
            subject.exec("details", &format!("n{index}")).args(["echo", &index.to_string()]).output()?;
        ensure!(output.text()? == index.to_string(), "{}", output.describe());
    }
    let large = subject.exec("details", "large").sh("seq 1 300000; seq 1 300000 >&2").output()?;
    large.succeeded()?;
    ensure!(
        large.stdout.len() == 1_988_895 && large.stdout == large.stderr,
        "{} {}",
        large.stdout.len(),
        large.stderr.len()
    );
    subject.remove("details")
}

fn exec_terminal(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("screen").flags(["--null-io"]).sh(PATIENT).detached()?;
    let output =
        subject.exec("screen", "e1").terminal().sh("test -t 0 && test -t 1 && tty; exit 6").output()?;
    ensure!(output.code() == 6 && output.out().starts_with("/dev/pts/0\r"), "{}", output.describe());
    subject.remove("screen")
}

/// Each gets its own streams and its own end, however many there are.
fn execs_at_once(lease: &mut Lease) -> Result<()> {
    const USERS: usize = 6;
    const EACH: usize = 8;
    let subject = lease.subject();
    subject.run("busy").flags(["--null-io"]).sh(PATIENT).detached()?;
    let one = |user: usize, number: usize| {
        // Not over at once: on a busy machine ctr 1.6 would lose the output.
        let script = format!("echo {user}-{number}; sleep 0.2; exit {number}");
        let output = subject.exec("busy", &format!("e{user}-{number}")).sh(&script).output()?;
        let expected = (i32::try_from(number)?, format!("{user}-{number}\n"));
        ensure!((output.code(), output.out()) == expected, "{}", output.describe());
        Ok(())
    };
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..USERS)
            .map(|user| scope.spawn(move || (0..EACH).try_for_each(|number| one(user, number))))
            .collect();
        users.into_iter().try_for_each(|user| user.join().map_err(|_| anyhow!("a user panicked"))?)
    })?;
    subject.remove("busy")
}

fn exec_errors(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("errors").flags(["--null-io"]).sh(PATIENT).detached()?;
    let absent = subject.exec("errors", "e1").args(["/no/such/program"]).output()?;
    ensure!(absent.code() != 0 && absent.err().contains("/no/such/program"), "{}", absent.describe());

    let recorder = Recorder::start(&lease.containerd)?;
    let sleeper = subject.exec("errors", "same").args(["sleep", "1000"]).start()?;
    recorder.wait("errors", "exec-started same")?;
    let taken = subject.exec("errors", "same").args(["true"]).output()?;
    ensure!(taken.code() != 0, "{}", taken.describe());
    ensure!(taken.err().contains("already exists"), "{}", taken.describe());
    drop(sleeper);

    // The container has not suffered.
    let fine = subject.exec("errors", "e2").args(["echo", "fine"]).output()?;
    ensure!(fine.text()? == "fine", "{}", fine.describe());
    subject.kill("errors", "SIGKILL")?.succeeded()?;
    subject.wait_status("errors", "STOPPED")?;
    let late = subject.exec("errors", "e3").args(["true"]).output()?;
    ensure!(late.code() != 0 && !late.err().is_empty(), "{}", late.describe());
    subject.remove("errors")
}

fn signals(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let script = "trap 'echo user; touch /tmp/user' USR1; trap 'echo hang; exit 12' HUP; echo ready; while :; do sleep 0.05; done";
    let running = subject.run("signals").sh(script).start()?;
    subject.wait_status("signals", "RUNNING")?;
    // The trap is set when the first process has said so; ctr shows it only at the end.
    wait_for_children(lease, "signals")?;
    subject.kill("signals", "SIGUSR1")?.succeeded()?;
    // A shell runs what it has trapped in the order of the signals' numbers: the second is sent when the first is over.
    let heard = "until test -e /tmp/user; do sleep 0.05; done";
    subject.exec("signals", "heard").sh(heard).output()?.succeeded()?;
    subject.kill("signals", "SIGHUP")?.succeeded()?;
    let output = running.wait(skep_tests::process::LIMIT)?;
    ensure!(output.code() == 12 && output.out() == "ready\nuser\nhang\n", "{}", output.describe());

    subject.run("killed").flags(["--null-io"]).sh(PATIENT).detached()?;
    subject.kill("killed", "SIGKILL")?.succeeded()?;
    subject.wait_status("killed", "STOPPED")?;
    let dead = subject.kill("killed", "SIGTERM")?;
    // containerd 2 leaves the code's own words out.
    let told = ["not found", "process already finished"].iter().any(|text| dead.err().contains(text));
    ensure!(dead.code() != 0 && told, "{}", dead.describe());
    ensure!(subject.delete_task("killed")? == 137);
    subject.remove("killed")
}

fn signal_to_exec(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.run("target").flags(["--null-io"]).sh(PATIENT).detached()?;
    let running = subject.exec("target", "e1").args(["sleep", "1000"]).start()?;
    recorder.wait("target", "exec-started e1")?;
    subject.ctr(["task", "kill", "--signal", "SIGKILL", "--exec-id", "e1", "target"])?.succeeded()?;
    let output = running.wait(skep_tests::process::LIMIT)?;
    ensure!(output.code() == 137, "{}", output.describe());
    ensure!(subject.task("target")?.is_some_and(|task| task.status == "RUNNING"));
    subject.remove("target")
}

/// What a user's Ctrl-C does: ctr passes it on.
fn signal_through_ctr(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let running = subject.run("passed").sh(PATIENT).start()?;
    subject.wait_status("passed", "RUNNING")?;
    wait_for_children(lease, "passed")?;
    let output = running.stop(Signal::SIGTERM)?;
    ensure!(output.code() == 7 && output.out() == "ready\n", "{}", output.describe());
    Ok(())
}

fn processes(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("family").flags(["--null-io"]).sh("sleep 1000 & sleep 1000 & wait").detached()?;
    wait_for("three processes", LIMIT, || {
        let table = subject.ctr(["task", "ps", "family"])?.text()?;
        Ok((table.lines().skip(1).count() == 3).then_some(()))
    })?;
    subject.remove("family")
}

fn two_at_once(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    for id in ["one", "two"] {
        subject.run(id).flags(["--null-io"]).sh(&format!("echo {id} >/tmp/name; {PATIENT}")).detached()?;
    }
    for id in ["one", "two"] {
        let script =
            "until test -e /tmp/ready; do sleep 0.05; done; cat /tmp/name; ls /proc | grep -c '^[0-9]*$'";
        let output = subject.exec(id, "e1").sh(script).output()?;
        let text = output.text()?;
        let (name, count) = text.split_once('\n').with_context(|| output.describe())?;
        ensure!(name == id && count.parse::<u32>()? <= 6, "{}", output.describe());
    }
    subject.remove("one")?;
    // The end of one is nothing to the other.
    ensure!(subject.exec("two", "e2").args(["cat", "/tmp/name"]).output()?.text()? == "two");
    subject.remove("two")
}

fn same_id_again(lease: &mut Lease) -> Result<()> {
    for round in 0..3 {
        let output = lease.subject().run("again").args(["echo", &round.to_string()]).output()?;
        ensure!(output.text()? == round.to_string(), "{}", output.describe());
    }
    Ok(())
}

fn containerd_restart(lease: &mut Lease) -> Result<()> {
    restart(lease, Signal::SIGTERM)
}

fn containerd_killed(lease: &mut Lease) -> Result<()> {
    restart(lease, Signal::SIGKILL)
}

fn restart(lease: &mut Lease, signal: Signal) -> Result<()> {
    let subject = lease.subject();
    subject
        .run("survivor")
        .flags(["--null-io"])
        .sh(&format!("echo kept >/tmp/state; {PATIENT}"))
        .detached()?;
    let before = subject.wait_status("survivor", "RUNNING")?;
    lease.containerd.restart(signal)?;
    let subject = lease.subject();
    let after = subject.wait_status("survivor", "RUNNING")?;
    ensure!(before == after, "{before:?} became {after:?}");
    let output = subject.exec("survivor", "e1").sh(&format!("{UNTIL_READY}; cat /tmp/state")).output()?;
    ensure!(output.text()? == "kept", "{}", output.describe());
    subject.kill("survivor", "SIGTERM")?.succeeded()?;
    subject.wait_status("survivor", "STOPPED")?;
    ensure!(subject.delete_task("survivor")? == 7);
    subject.remove("survivor")
}

/// What runs, is paused, has ended or has a terminal stays so, however containerd ends.
fn restarts_in_every_state(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("runs").flags(["--null-io"]).sh(PATIENT).detached()?;
    subject.run("waits").flags(["--null-io"]).sh(PATIENT).detached()?;
    subject.ctr(["task", "pause", "waits"])?.succeeded()?;
    subject.run("over").flags(["--null-io"]).sh("exit 9").detached()?;
    subject.run("screen").terminal().sh(&format!("test -t 0 || exit 1; {PATIENT}")).detached()?;
    subject.wait_status("over", "STOPPED")?;
    let sorted = |subject: &Subject<'_>| {
        let mut tasks = subject.tasks()?;
        tasks.sort_by(|one, other| one.id.cmp(&other.id));
        anyhow::Ok(tasks)
    };
    let mut before = sorted(&subject)?;
    // containerd 2 takes a shim without processes for one that was left over: `loadShim` in its core/runtime/v2.
    let forgets = lease.containerd.installation().line == Line::V2;
    if forgets {
        before.retain(|task| task.id != "over");
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        lease.containerd.restart(signal)?;
        let subject = lease.subject();
        wait_for(&format!("the tasks to be as before {signal}"), LIMIT, || {
            Ok((sorted(&subject)? == before).then_some(()))
        })
        .with_context(|| format!("{before:?} became {:?}", subject.tasks()))?;
        for id in ["runs", "screen"] {
            let exec = subject.exec(id, &format!("after-{signal}")).sh(UNTIL_READY);
            exec.output()?.succeeded()?;
        }
    }
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.ctr(["task", "resume", "waits"])?.succeeded()?;
    subject.exec("waits", "e1").sh(UNTIL_READY).output()?.succeeded()?;
    for id in ["runs", "waits", "screen"] {
        subject.kill(id, "SIGTERM")?.succeeded()?;
        ensure!(recorder.wait(id, "exit")?.number("exit_status") == 7);
        subject.wait_status(id, "STOPPED")?;
    }
    for (id, code) in [("runs", 7), ("waits", 7), ("screen", 7), ("over", 9)] {
        if id != "over" || !forgets {
            ensure!(subject.delete_task(id)? == code, "{id}");
        }
        subject.remove(id)?;
    }
    Ok(())
}

fn pause(lease: &mut Lease) -> Result<()> {
    const AWAY: Duration = Duration::from_secs(5);
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.run("still").flags(["--null-io"]).sh(PATIENT).detached()?;
    subject.exec("still", "e1").sh(UNTIL_READY).output()?.succeeded()?;
    subject.ctr(["task", "pause", "still"])?.succeeded()?;
    subject.wait_status("still", "PAUSED")?;
    let exec = subject.exec("still", "e2").args(["true"]).output()?;
    ensure!(exec.code() != 0 && exec.err().contains("paused"), "{}", exec.describe());
    std::thread::sleep(AWAY);
    subject.ctr(["task", "resume", "still"])?.succeeded()?;
    subject.wait_status("still", "RUNNING")?;
    // It has not lost the time in which it did nothing.
    let before = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let date = subject.exec("still", "e3").args(["date", "+%s"]).output()?.text()?;
    let after = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let date: u64 = date.parse().with_context(|| format!("no date: {date:?}"))?;
    ensure!((before.saturating_sub(1)..=after + 1).contains(&date), "{before} {date} {after}");
    subject.kill("still", "SIGTERM")?.succeeded()?;
    recorder.wait("still", "exit")?;
    ensure!(subject.delete_task("still")? == 7);
    recorder.wait("still", "delete")?;
    let mut summaries = recorder.summaries("still");
    summaries.retain(|summary| !summary.contains(" e"));
    ensure!(summaries == ["create", "start", "paused", "resumed", "exit", "delete"], "{summaries:?}");
    subject.remove("still")
}

/// Nobody has to resume it for that.
fn kill_of_a_paused_one(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("frozen").flags(["--null-io"]).sh(PATIENT).detached()?;
    subject.ctr(["task", "pause", "frozen"])?.succeeded()?;
    subject.wait_status("frozen", "PAUSED")?;
    subject.kill("frozen", "SIGKILL")?.succeeded()?;
    subject.wait_status("frozen", "STOPPED")?;
    ensure!(subject.delete_task("frozen")? == 137);
    subject.remove("frozen")
}

/// From Create to Start the guest is asked three times at most.
fn round_trips(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("counted").flags(["--null-io"]).sh(PATIENT).detached()?;
    let path = subject.sandbox("counted")?.join("timings.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let timings: Value = serde_json::from_str(&text)?;
    let trips = timings["round_trips"].as_u64().with_context(|| format!("no round_trips in {text}"))?;
    ensure!((1..=3).contains(&trips), "{trips} round trips: {text}");
    ensure!(lease.runtime == Runtime::Skep);
    subject.remove("counted")
}

/// The same over the other channel to the guest.
fn vsock_channel(lease: &mut Lease) -> Result<()> {
    let backend = vsock::backend()?;
    lease.configure(|configuration| {
        configuration.more =
            format!("vhost_device_vsock = {:?}\n[agent]\nchannel = \"vsock\"\n", backend.to_string_lossy());
    })?;
    let subject = lease.subject();
    subject.run("vsock").flags(["--null-io"]).sh(PATIENT).detached()?;
    let program = |member: &Member| member.program() == "vhost-device-vsock";
    ensure!(census::processes(&lease.containerd.scope())?.iter().any(program), "the backend does not run");
    let output = subject.exec("vsock", "e1").sh(&format!("{UNTIL_READY}; seq 1 300000; exit 3")).output()?;
    ensure!(
        output.code() == 3 && output.stdout.len() == 1_988_895,
        "{} {}",
        output.code(),
        output.stdout.len()
    );
    let output =
        subject.exec("vsock", "e2").sh("echo ready >&2; wc -c").stdin(vec![b'x'; 1_000_000]).output()?;
    ensure!(output.text()? == "1000000", "{}", output.describe());
    subject.kill("vsock", "SIGTERM")?.succeeded()?;
    subject.wait_status("vsock", "STOPPED")?;
    ensure!(subject.delete_task("vsock")? == 7);
    subject.remove("vsock")
}

/// Waits until a container's first process has a child, which tells that it has come as far.
fn wait_for_children(lease: &Lease, id: &str) -> Result<()> {
    let subject = lease.subject();
    wait_for("a child in the container", LIMIT, || {
        let table = subject.ctr(["task", "ps", id])?.text()?;
        Ok((table.lines().skip(1).count() >= 2).then_some(()))
    })
}
