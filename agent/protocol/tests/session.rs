//! Sessions between a host and an agent over a plain byte channel.

mod common;

use std::time::Duration;

use common::{PATIENCE, plain};
use skep_protocol::{Code, ConnectError, Endpoint, Session, api};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn calls_answers_and_errors() {
    let guest = plain();
    let session = Session::connect(&guest.endpoint, PATIENCE).await.unwrap();
    let request = api::CreateSandboxRequest { sandbox_id: "one".to_owned(), ..Default::default() };
    let answer = session.agent().create_sandbox(&request).await.unwrap();
    assert_eq!(answer.agent_version, "agent of one");
    let error = session.agent().start_process(&api::ProcessRequest::default()).await.unwrap_err();
    assert_eq!((error.code, error.method), (Code::NOT_FOUND, "StartProcess"));
    // A refusal is a round trip too; a wait is none.
    session.agent().wait_process(&api::ProcessRequest::default()).await.unwrap();
    assert_eq!(session.round_trips(), 2);
}

#[tokio::test]
async fn a_silent_call_times_out_and_the_session_goes_on() {
    let guest = plain();
    let session = Session::connect(&guest.endpoint, PATIENCE).await.unwrap();
    let impatient = session.agent().with_timeout(Duration::from_millis(50));
    // The agent of these tests never answers this one.
    let error = impatient.pause_container(&api::ContainerRequest::default()).await.unwrap_err();
    assert_eq!(error.code, Code::DEADLINE_EXCEEDED);
    assert!(error.to_string().contains("PauseContainer"), "{error}");
    session.agent().create_sandbox(&api::CreateSandboxRequest::default()).await.unwrap();
}

#[tokio::test]
async fn stdio_both_ways_with_half_closes() {
    let guest = plain();
    let session = Session::connect(&guest.endpoint, PATIENCE).await.unwrap();
    let (stdin, stdout) = (session.draw_token(), session.draw_token());
    let mut input = session.open_stdio(stdin).await.unwrap();
    let mut output = session.open_stdio(stdout).await.unwrap();
    common::echo(&session, stdin, stdout).await;
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i * 31 % 251) as u8).collect();
    let mut back = Vec::new();
    let write = async {
        input.write_all(&data).await.unwrap();
        input.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(output.read_to_end(&mut back), write);
    read.unwrap();
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
}

#[tokio::test]
async fn a_closed_session_breaks_streams_and_calls() {
    let guest = plain();
    let session = Session::connect(&guest.endpoint, PATIENCE).await.unwrap();
    let token = session.draw_token();
    let mut output = session.open_stdio(token).await.unwrap();
    common::echo(&session, 0, token).await;
    session.close().await;
    assert_eq!(session.closed().await.reason, "closed by this host");
    let error = output.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let error = session.agent().create_sandbox(&api::CreateSandboxRequest::default()).await.unwrap_err();
    assert_eq!(error.code, Code::UNAVAILABLE, "{error}");
    assert!(session.open_stdio(9).await.unwrap_err().to_string().contains("closed by this host"));
    // The next session works.
    let session = Session::connect(&guest.endpoint, PATIENCE).await.unwrap();
    session.agent().create_sandbox(&api::CreateSandboxRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_dies_ends_the_session() {
    let guest = plain();
    let session = Session::connect(&guest.endpoint, PATIENCE).await.unwrap();
    let waiting = tokio::spawn({
        let session = session.clone();
        async move { session.agent().pause_container(&api::ContainerRequest::default()).await }
    });
    while !guest.agent.is_pausing() {
        tokio::task::yield_now().await;
    }
    drop(guest);
    session.closed().await;
    assert_eq!(waiting.await.unwrap().unwrap_err().code, Code::UNAVAILABLE);
}

#[tokio::test]
async fn nobody_there_is_an_error_that_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.sock");
    let error =
        Session::connect(&Endpoint::Stream(path.clone()), Duration::from_millis(60)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }));
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("connecting"), "{text}");
}
