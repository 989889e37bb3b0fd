//! A guest that does what it likes: a host's session ends or goes on, within bounds, and nothing hangs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::future::poll_fn;
use std::time::Duration;

use common::{PATIENCE, refusal};
use proptest::prelude::*;
use skep_protocol::testing::session_over;
use skep_protocol::{Code, ConnectError, Endpoint, Session, api};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixListener;
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode};

/// A session, and the guest's end of its channel.
async fn session() -> (Session, DuplexStream) {
    let (host, guest) = tokio::io::duplex(1 << 20);
    (session_over(host).await.unwrap(), guest)
}

async fn closed(session: &Session) -> String {
    tokio::time::timeout(PATIENCE, session.closed()).await.unwrap().reason
}

/// One yamux frame: type, flags, stream, length as said, body as it is.
fn frame(kind: u8, flags: u8, stream: u32, length: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, kind, 0, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

#[tokio::test]
async fn a_guest_opens_no_streams() {
    let (session, guest) = session().await;
    let mut connection = Connection::new(guest.compat(), Config::default(), Mode::Server);
    let mut stream = poll_fn(|cx| connection.poll_new_outbound(cx)).await.unwrap();
    futures::AsyncWriteExt::write_all(&mut stream, b"stdio 1\n").await.unwrap();
    tokio::spawn(async move { while poll_fn(|cx| connection.poll_next_inbound(cx)).await.is_some() {} });
    assert_eq!(closed(&session).await, "the guest tried to open a stream");
    let error = session.agent().shutdown(&api::Empty::default()).await.unwrap_err();
    assert_eq!(error.code, Code::UNAVAILABLE);
    assert!(error.to_string().contains("tried to open a stream"), "{error}");
}

#[tokio::test]
async fn a_frame_too_long_ends_the_session() {
    let (session, mut guest) = session().await;
    guest.write_all(&frame(0, 0, 1, u32::MAX, b"")).await.unwrap();
    assert!(closed(&session).await.contains("too large"));
}

#[tokio::test]
async fn a_window_does_not_hold_more_than_it_is() {
    let (session, mut guest) = session().await;
    let token = session.draw_token();
    let mut output = session.open_stdio(token).await.unwrap();
    // Stream 1 carries the calls, 3 is this one. Far more than its window, unasked.
    let mut chunk = 60_000u16.to_be_bytes().to_vec();
    chunk.resize(60_002, 7);
    let length = u32::try_from(chunk.len()).unwrap();
    let flood = tokio::spawn(async move {
        for _ in 0..1000 {
            if guest.write_all(&frame(0, 0, 3, length, &chunk)).await.is_err() {
                break;
            }
        }
        guest
    });
    let guest = flood.await.unwrap();
    let mut received = 0;
    let mut buffer = vec![0; 1 << 16];
    while let Ok(Ok(count @ 1..)) =
        tokio::time::timeout(Duration::from_millis(300), output.read(&mut buffer)).await
    {
        received += count;
    }
    assert!(received <= 256 * 1024, "{received}");
    drop(guest);
    closed(&session).await;
}

#[tokio::test]
async fn rubbish_instead_of_answers_fails_the_call_only_in_time() {
    let (session, mut guest) = session().await;
    let agent = session.agent().with_timeout(Duration::from_millis(200));
    let call = tokio::spawn(async move { agent.shutdown(&api::Empty::default()).await });
    // ttrpc: length 4 GiB, stream 1, a response; then bytes that are none of it.
    let mut body = u32::MAX.to_be_bytes().to_vec();
    body.extend_from_slice(&[0, 0, 0, 1, 2, 0]);
    body.resize(4000, 0xee);
    guest.write_all(&frame(0, 0, 1, 4000, &body)).await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert!(!error.message.is_empty() && error.method == "Shutdown", "{error}");
    drop(guest);
    closed(&session).await;
}

#[tokio::test]
async fn greetings_are_bounded_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    for (greeting, expected) in [
        (&b"skep 77\n"[..], "version 77"),
        (b"skep one\n", "unknown stream header"),
        (b"a line that never seems to come to any kind of end", "longer than"),
    ] {
        let path = dir.path().join(format!("{}.sock", greeting.len()));
        let listener = UnixListener::bind(&path).unwrap();
        let guest = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let _ = socket.write_all(greeting).await;
                let _ = socket.read_to_end(&mut Vec::new()).await;
            }
        });
        let error = refusal(&Endpoint::Stream(path), expected).await;
        assert_eq!(matches!(error, ConnectError::Version { guest: 77, .. }), expected.starts_with("version"));
        assert!(error.to_string().contains(expected), "{error}");
        guest.abort();
    }
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    (0u8..5, 0u8..16, prop_oneof![0u32..6, any::<u32>()], prop_oneof![0u32..100, any::<u32>()], 0usize..100)
        .prop_map(|(kind, flags, stream, length, body)| frame(kind, flags, stream, length, &vec![0; body]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever frames come: the host's side ends when the channel does, and does not panic.
    #[test]
    fn any_frames_are_survived(frames in proptest::collection::vec(any_frame(), 0..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (session, mut guest) = session().await;
            let mut output = session.open_stdio(session.draw_token()).await.unwrap();
            let reader = tokio::spawn(async move {
                let mut buffer = [0; 1000];
                while let Ok(1..) = output.read(&mut buffer).await {}
            });
            for frame in frames {
                let _ = guest.write_all(&frame).await;
            }
            drop(guest);
            let reason = closed(&session).await;
            assert!(!reason.contains("task is gone"), "it panicked");
            reader.await.unwrap();
        });
    }
}
