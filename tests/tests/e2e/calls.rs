//! Every call of the task service in every state of a task: what is answered, and by which code it is refused.

use anyhow::{Result, ensure};
use serde_json::json;
use skep_containerd_api::task::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, ResizePtyRequest, ResumeRequest, StateRequest, StatsRequest,
};
use skep_tests::ctr::Runtime;
use skep_tests::suite::Lease;
use skep_tests::task_api::{NewProcess, Refusal, Shim, any};
use ttrpc::Code;

use crate::Case;

pub(crate) const CASES: &[Case] = &[Case::both("calls", calls).on_freebsd()];

/// No signal of a Linux guest: on Linux the first number beyond them, on FreeBSD the last that it has for real-time use.
const NO_SIGNAL: u32 = if cfg!(target_os = "linux") { 65 } else { 126 };

/// The container under test.
const ID: &str = "called";

/// A call with all its arguments.
#[derive(Clone, Copy, Debug)]
enum Call {
    State(&'static str),
    Start(&'static str),
    Delete(&'static str),
    Pids,
    Pause,
    Resume,
    Checkpoint,
    Kill(&'static str, u32),
    Exec(&'static str),
    ExecGarbage,
    ResizePty(&'static str),
    CloseIo(&'static str),
    Update,
    UpdateNothing,
    Stats,
    Wait(&'static str),
    Connect,
}

/// One line of the table: the call, and the code of its refusal with Skep and with runc, `None` for an answer.
type Line = (Call, Option<Code>, Option<Code>);

const NOT_FOUND: Option<Code> = Some(Code::NOT_FOUND);
const EXISTS: Option<Code> = Some(Code::ALREADY_EXISTS);
const STATE: Option<Code> = Some(Code::FAILED_PRECONDITION);
const INVALID: Option<Code> = Some(Code::INVALID_ARGUMENT);
const UNIMPLEMENTED: Option<Code> = Some(Code::UNIMPLEMENTED);
/// What containerd's own shim says where it has no code.
const UNKNOWN: Option<Code> = Some(Code::UNKNOWN);

/// No such container.
const ABSENT: &[Line] = &[
    (Call::State(""), NOT_FOUND, NOT_FOUND),
    (Call::Start(""), NOT_FOUND, NOT_FOUND),
    (Call::Delete(""), NOT_FOUND, NOT_FOUND),
    (Call::Pids, NOT_FOUND, NOT_FOUND),
    (Call::Pause, NOT_FOUND, NOT_FOUND),
    (Call::Resume, NOT_FOUND, NOT_FOUND),
    (Call::Checkpoint, NOT_FOUND, NOT_FOUND),
    (Call::Kill("", 15), NOT_FOUND, NOT_FOUND),
    (Call::Exec("e"), NOT_FOUND, NOT_FOUND),
    (Call::ResizePty(""), NOT_FOUND, NOT_FOUND),
    (Call::CloseIo(""), NOT_FOUND, NOT_FOUND),
    (Call::Update, NOT_FOUND, NOT_FOUND),
    (Call::Stats, NOT_FOUND, NOT_FOUND),
    (Call::Wait(""), NOT_FOUND, NOT_FOUND),
    (Call::Connect, None, None),
];

/// A running container, by and by with a process that is only added.
const RUNNING: &[Line] = &[
    (Call::State("x"), NOT_FOUND, NOT_FOUND),
    (Call::Start("x"), NOT_FOUND, NOT_FOUND),
    (Call::Delete("x"), NOT_FOUND, NOT_FOUND),
    (Call::Kill("x", 15), NOT_FOUND, NOT_FOUND),
    (Call::ResizePty("x"), NOT_FOUND, NOT_FOUND),
    (Call::CloseIo("x"), NOT_FOUND, UNKNOWN),
    (Call::Wait("x"), NOT_FOUND, NOT_FOUND),
    (Call::State(""), None, None),
    (Call::Pids, None, None),
    (Call::Stats, None, None),
    (Call::Update, None, None),
    (Call::Connect, None, None),
    (Call::Start(""), STATE, UNKNOWN),
    (Call::Delete(""), STATE, UNKNOWN),
    (Call::Resume, STATE, UNKNOWN),
    (Call::Checkpoint, UNIMPLEMENTED, UNKNOWN),
    (Call::Kill("", 0), None, None),
    (Call::Kill("", NO_SIGNAL), INVALID, UNKNOWN),
    (Call::ResizePty(""), None, None),
    (Call::CloseIo(""), None, None),
    (Call::ExecGarbage, INVALID, UNKNOWN),
    (Call::UpdateNothing, INVALID, UNKNOWN),
    (Call::Exec("e"), None, None),
    (Call::Exec("e"), EXISTS, EXISTS),
    (Call::State("e"), None, None),
    (Call::Kill("e", 15), STATE, STATE),
    (Call::Start("e"), None, None),
    (Call::Start("e"), STATE, UNKNOWN),
    (Call::Delete("e"), STATE, UNKNOWN),
    (Call::Kill("e", 9), None, None),
    (Call::Wait("e"), None, None),
    (Call::State("e"), None, None),
    (Call::Kill("e", 9), NOT_FOUND, NOT_FOUND),
    (Call::Start("e"), STATE, UNKNOWN),
    (Call::Delete("e"), None, None),
    (Call::Delete("e"), NOT_FOUND, NOT_FOUND),
    (Call::Pause, None, None),
];

const PAUSED: &[Line] = &[
    (Call::State(""), None, None),
    (Call::Pids, None, None),
    (Call::Stats, None, None),
    (Call::Update, None, None),
    (Call::Pause, STATE, UNKNOWN),
    (Call::Start(""), STATE, UNKNOWN),
    (Call::Delete(""), STATE, UNKNOWN),
    (Call::Exec("e"), STATE, UNKNOWN),
    (Call::ResizePty(""), None, None),
    (Call::Resume, None, None),
];

const STOPPED: &[Line] = &[
    (Call::State(""), None, None),
    (Call::Wait(""), None, None),
    (Call::CloseIo(""), None, None),
    (Call::Kill("", 15), NOT_FOUND, NOT_FOUND),
    (Call::Start(""), STATE, UNKNOWN),
    (Call::Pause, STATE, UNKNOWN),
    (Call::Resume, STATE, UNKNOWN),
    (Call::Update, STATE, UNKNOWN),
    (Call::Exec("e"), STATE, UNKNOWN),
    (Call::ResizePty(""), None, None),
    (Call::Pids, None, None),
];

fn calls(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run(ID).flags(["--null-io"]).args(["sleep", "1000"]).detached()?;
    let shim = Shim::of(&lease.containerd, ID)?;
    let mut differing = Vec::new();
    let mut play = |id, state, lines: &[Line]| {
        for (call, skep, runc) in lines {
            let expected = if lease.runtime == Runtime::Skep { *skep } else { *runc };
            let answer = make(&shim, id, *call);
            let told = answer.as_ref().err().is_none_or(|(_, text)| !text.trim().is_empty());
            if answer.as_ref().err().map(|(code, _)| *code) != expected || !told {
                differing.push(format!("{call:?} of one that is {state}: {answer:?}, not {expected:?}"));
            }
        }
    };
    play("absent", "absent", ABSENT);
    play(ID, "running", RUNNING);
    play(ID, "paused", PAUSED);
    subject.kill(ID, "SIGKILL")?.succeeded()?;
    subject.wait_status(ID, "STOPPED")?;
    play(ID, "stopped", STOPPED);
    ensure!(differing.is_empty(), "{}", differing.join("\n"));
    subject.remove(ID)
}

fn make(shim: &Shim, id: &str, call: Call) -> Result<(), Refusal> {
    let id = id.to_owned();
    match call {
        Call::State(exec) => {
            let request = StateRequest { id, exec_id: exec.into(), ..Default::default() };
            shim.call(async |client, context| client.state(context, &request).await).map(drop)
        }
        Call::Start(exec) => shim.start(&id, exec),
        Call::Delete(exec) => shim.delete(&id, exec),
        Call::Pids => {
            let request = PidsRequest { id, ..Default::default() };
            shim.call(async |client, context| client.pids(context, &request).await).map(drop)
        }
        Call::Pause => {
            let request = PauseRequest { id, ..Default::default() };
            shim.call(async |client, context| client.pause(context, &request).await).map(drop)
        }
        Call::Resume => {
            let request = ResumeRequest { id, ..Default::default() };
            shim.call(async |client, context| client.resume(context, &request).await).map(drop)
        }
        Call::Checkpoint => {
            let request = CheckpointTaskRequest { id, path: "/nowhere".into(), ..Default::default() };
            shim.call(async |client, context| client.checkpoint(context, &request).await).map(drop)
        }
        Call::Kill(exec, signal) => {
            let request = KillRequest { id, exec_id: exec.into(), signal, ..Default::default() };
            shim.call(async |client, context| client.kill(context, &request).await).map(drop)
        }
        Call::Exec(exec) => {
            shim.add(&id, &NewProcess { exec, args: &["sleep", "1000"], ..NewProcess::default() })
        }
        Call::ExecGarbage => {
            let spec = Some(any("Process", &json!({"args": 7}))).into();
            let request = ExecProcessRequest { id, exec_id: "garbage".into(), spec, ..Default::default() };
            shim.call(async |client, context| client.exec(context, &request).await).map(drop)
        }
        Call::ResizePty(exec) => {
            let request =
                ResizePtyRequest { id, exec_id: exec.into(), width: 80, height: 24, ..Default::default() };
            shim.call(async |client, context| client.resize_pty(context, &request).await).map(drop)
        }
        Call::CloseIo(exec) => {
            let request = CloseIORequest { id, exec_id: exec.into(), stdin: true, ..Default::default() };
            shim.call(async |client, context| client.close_io(context, &request).await).map(drop)
        }
        Call::Update => shim.update(&id, &json!({"pids": {"limit": 100}})),
        Call::UpdateNothing => shim.update(&id, &json!(7)),
        Call::Stats => {
            let request = StatsRequest { id, ..Default::default() };
            shim.call(async |client, context| client.stats(context, &request).await).map(drop)
        }
        Call::Wait(exec) => shim.wait(&id, exec).map(drop),
        Call::Connect => {
            let request = ConnectRequest { id, ..Default::default() };
            shim.call(async |client, context| client.connect(context, &request).await).map(drop)
        }
    }
}
