//! Sessions between a host and an agent, over every kind of channel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{FLOOD, PATIENCE, all_kinds, echo, echoes, plain, refusal};
use skep_protocol::{Code, ConnectError, Endpoint, api};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn calls_answers_and_errors() {
    for (kind, guest) in all_kinds() {
        let session = guest.session().await;
        let request = api::CreateSandboxRequest { sandbox_id: kind.to_owned(), ..Default::default() };
        let answer = session.agent().create_sandbox(&request).await.unwrap();
        assert_eq!(answer.agent_version, format!("agent of {kind}"));
        let error = session.agent().start_process(&api::StartProcessRequest::default()).await.unwrap_err();
        assert_eq!((error.code, error.method), (Code::NOT_FOUND, "StartProcess"));
        // A refusal is a round trip too; a wait is none.
        let waited = session.agent().wait_process(&api::ProcessRequest::default()).await.unwrap();
        assert_eq!(waited.exit_status, 3);
        assert_eq!(session.round_trips(), 2);
    }
}

#[tokio::test]
async fn a_silent_call_times_out_and_the_session_goes_on() {
    for (_, guest) in all_kinds() {
        let session = guest.session().await;
        let impatient = session.agent().with_timeout(Duration::from_millis(50));
        // The agent of these tests never answers this one.
        let error = impatient.pause_container(&api::ContainerRequest::default()).await.unwrap_err();
        assert_eq!(error.code, Code::DEADLINE_EXCEEDED);
        assert!(error.to_string().contains("PauseContainer"), "{error}");
        session.agent().create_sandbox(&api::CreateSandboxRequest::default()).await.unwrap();
        assert_eq!(session.round_trips(), 1);
    }
}

#[tokio::test]
async fn stdio_both_ways_with_half_closes() {
    for (kind, guest) in all_kinds() {
        let session = guest.session().await;
        echoes(&session, if kind == "slow console" { 20_000 } else { 1_000_000 }, 0).await;
        echoes(&session, 0, 0).await;
    }
}

/// 10 MB each way at once.
#[tokio::test]
async fn much_data() {
    for (kind, guest) in all_kinds() {
        if kind == "slow console" {
            continue;
        }
        echoes(&guest.session().await, 10 << 20, 7).await;
        if let Some(vmm) = &guest.vmm {
            let counts = vmm.counts();
            assert_eq!((counts.overruns, counts.accepted), (0, 1), "{counts:?}");
        }
    }
}

#[tokio::test]
async fn many_streams_at_once() {
    for (kind, guest) in all_kinds() {
        let session = guest.session().await;
        let mut tasks = tokio::task::JoinSet::new();
        for seed in 0..100 {
            let session = session.clone();
            let count = if kind == "slow console" { 100 } else { 20_000 };
            tasks.spawn(async move { echoes(&session, count, seed).await });
        }
        tasks.join_all().await;
    }
}

/// More streams than yamux opens ahead of their acknowledgement, none of which the guest writes to.
#[tokio::test]
async fn idle_streams_do_not_hold_up_the_next() {
    let guest = plain();
    let session = guest.session().await;
    let mut idle = Vec::new();
    for _ in 0..600 {
        let token = session.draw_token();
        idle.push(session.open_stdio(token).await.unwrap());
    }
    echoes(&session, 1000, 0).await;
}

#[tokio::test]
async fn a_host_has_a_bounded_number_of_streams() {
    let guest = plain();
    let session = guest.session().await;
    let mut open = Vec::new();
    let error = loop {
        match session.open_stdio(session.draw_token()).await {
            Ok(stream) => open.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(open.len(), 1023, "and the calls' own");
    assert!(error.to_string().contains("too many"), "{error}");
    drop(open);
    echoes(&session, 1000, 0).await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_else_and_fills_no_memory() {
    for (kind, guest) in all_kinds() {
        let session = guest.session().await;
        let token = session.draw_token();
        let mut flooded = session.open_stdio(token).await.unwrap();
        common::start(&session, "flood", 0, token).await;
        // Nobody reads the flood; others go on.
        echoes(&session, if kind == "slow console" { 5000 } else { 500_000 }, 1).await;
        session.agent().create_sandbox(&api::CreateSandboxRequest::default()).await.unwrap();
        let held = guest.agent.flooded.load(Ordering::SeqCst);
        assert!(held <= 640 * 1024, "{kind}: {held} bytes are under way");
        if kind != "slow console" {
            let mut all = Vec::new();
            flooded.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), FLOOD);
        }
    }
}

#[tokio::test]
async fn a_stream_that_the_guest_drops_is_an_error() {
    for (_, guest) in all_kinds() {
        let session = guest.session().await;
        let (mut input, mut output) = echo(&session).await;
        // The container fails to write when its output is dropped here, and drops its input in turn.
        input.write_all(b"x").await.unwrap();
        output.read_exact(&mut [0; 1]).await.unwrap();
        drop(output);
        let error = loop {
            if let Err(error) = input.write_all(b"x").await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn a_closed_session_breaks_streams_and_calls() {
    for (kind, guest) in all_kinds() {
        let session = guest.session().await;
        let (_input, mut output) = echo(&session).await;
        session.close().await;
        assert_eq!(session.closed().await.reason, "closed by this host");
        let error = output.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{kind}");
        let error = session.agent().create_sandbox(&api::CreateSandboxRequest::default()).await.unwrap_err();
        assert_eq!(error.code, Code::UNAVAILABLE, "{error}");
        assert!(session.open_stdio(9).await.unwrap_err().to_string().contains("closed by this host"));
        // The guest notices, and the next session works.
        let session = guest.session().await;
        session.agent().create_sandbox(&api::CreateSandboxRequest::default()).await.unwrap();
        while guest.agent.broken.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_dropped_session_ends() {
    for (_, guest) in all_kinds() {
        let session = guest.session().await;
        let (_input, mut output) = echo(&session).await;
        drop(session);
        let error = output.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        echoes(&guest.session().await, 1000, 0).await;
    }
}

#[tokio::test]
async fn a_guest_that_dies_ends_the_session() {
    for (kind, guest) in all_kinds() {
        let session = guest.session().await;
        let waiting = tokio::spawn({
            let session = session.clone();
            async move { session.agent().pause_container(&api::ContainerRequest::default()).await }
        });
        while !guest.agent.is_pausing() {
            tokio::task::yield_now().await;
        }
        drop(guest);
        session.closed().await;
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.code, Code::UNAVAILABLE, "{kind}: {error}");
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_that_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.sock");
    for endpoint in [Endpoint::Stream(path.clone()), Endpoint::Console(path.clone())] {
        let error = refusal(&endpoint, "connecting").await;
        assert!(matches!(error, ConnectError::Timeout { .. }));
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("connecting"), "{text}");
    }
}

#[tokio::test]
async fn a_socket_without_an_agent_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mute.sock");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    for (endpoint, waiting) in [
        (Endpoint::Stream(path.clone()), "greeting"),
        (Endpoint::Console(path.clone()), "take up the session"),
        (Endpoint::Vsock { uds: path.clone(), port: 7 }, "listen on its vsock port"),
    ] {
        let error = refusal(&endpoint, waiting).await.to_string();
        assert!(error.contains(waiting), "{error}");
    }
}

#[test]
fn one_thread_is_enough() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let guest = common::console();
        echoes(&guest.session().await, 3 << 20, 0).await;
    });
    // And many do no harm.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let guest = common::console();
        let session = guest.session().await;
        let (one, two) = (session.clone(), session.clone());
        let tasks = [
            tokio::spawn(async move { echoes(&one, 3 << 20, 0).await }),
            tokio::spawn(async move { echoes(&two, 3 << 20, 1).await }),
        ];
        for task in tasks {
            tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
        }
    });
}
