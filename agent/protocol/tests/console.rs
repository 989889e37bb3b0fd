//! What is particular to sessions over bhyve's virtio-console.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Boot, PATIENCE, console, console_after, echo, echoes, raw, refusal};
use skep_protocol::api;
use skep_protocol::link::Limits;
use skep_protocol::testing::{Buffers, Travel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn the_host_may_be_there_long_before_the_guest() {
    // Some greetings each.
    let guest = console_after(Buffers::LINUX, Limits::LINUX_GUEST, Travel::DIRECT, Boot::Unheard(100));
    echoes(&guest.session().await, 100_000, 0).await;
    let counts = guest.vmm.as_ref().unwrap().counts();
    assert!(counts.dropped_down >= 200 && counts.overruns == 0, "{counts:?}");
}

#[tokio::test]
async fn the_guest_may_be_there_long_before_the_host() {
    let guest = console();
    while guest.vmm.as_ref().unwrap().counts().dropped_up < 200 {
        tokio::task::yield_now().await;
    }
    echoes(&guest.session().await, 100_000, 0).await;
}

/// A host that is killed says nothing, and the guest is not told either.
#[tokio::test]
async fn a_new_host_takes_over_from_a_killed_one() {
    let guest = console();
    for round in 1..4 {
        let session = guest.session().await;
        let (mut input, mut output) = echo(&session).await;
        input.write_all(b"unread").await.unwrap();
        echoes(&session, 200_000, 0).await;
        guest.vmm.as_ref().unwrap().disconnect();
        let closed = session.closed().await;
        assert!(closed.reason.contains("closed"), "{closed}");
        // What had come is read, then the stream is broken, not ended.
        let mut got = Vec::new();
        assert_eq!(
            output.read_to_end(&mut got).await.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
        assert!(b"unread".starts_with(&got));

        // The new session has the agent to itself, and the old one's containers lose their streams.
        let session = guest.session().await;
        echoes(&session, 200_000, 0).await;
        while guest.agent.broken.load(Ordering::SeqCst) < round {
            tokio::task::yield_now().await;
        }
        session.close().await;
    }
}

#[tokio::test]
async fn a_second_host_is_told_and_the_first_goes_on() {
    let guest = console();
    let session = guest.session().await;
    let error = refusal(&guest.endpoint, "closed").await;
    assert!(error.to_string().contains("closed"), "{error}");
    echoes(&session, 100_000, 0).await;
}

#[tokio::test]
async fn a_stopped_vm_is_not_dead() {
    let guest = console();
    let vmm = guest.vmm.as_ref().unwrap();
    let session = guest.session().await;
    let (mut input, mut output) = echo(&session).await;
    let data = vec![7; 2_000_000];
    let write = async {
        input.write_all(&data).await.unwrap();
        input.shutdown().await.unwrap();
    };
    let stop_and_go = async {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            vmm.set_stopped(true);
            // Time for some probes.
            tokio::time::sleep(Duration::from_millis(700)).await;
            vmm.set_stopped(false);
        }
    };
    let mut back = Vec::new();
    let (read, (), ()) = tokio::join!(output.read_to_end(&mut back), write, stop_and_go);
    read.unwrap();
    assert!(back == data);
    let counts = vmm.counts();
    assert_eq!((counts.overruns, counts.accepted), (0, 1), "{counts:?}");
    assert!(counts.most_waiting < 60, "{counts:?}");
}

#[tokio::test]
async fn garbage_on_the_port_does_not_hold_up_a_session() {
    let guest = console();
    let mut before = raw(&guest.endpoint).await;
    // A header that promises more than comes, and noise.
    before.write_all(b"\xf5\x53\x6b\xa7\x01\x04\xff\x0fand then nothing of that").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(before);
    echoes(&guest.session().await, 100_000, 0).await;
}

#[tokio::test]
async fn a_session_can_be_declared_stopped() {
    let guest = console();
    let vmm = guest.vmm.as_ref().unwrap();
    let session = guest.session().await;
    session.set_paused(true);
    vmm.set_stopped(true);
    let call = tokio::spawn({
        let session = session.clone();
        async move {
            let agent = session.agent().with_timeout(PATIENCE);
            agent.create_sandbox(&api::CreateSandboxRequest::default()).await
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let quiet = vmm.counts().transfers;
    vmm.set_stopped(false);
    session.set_paused(false);
    call.await.unwrap().unwrap();
    assert!(vmm.counts().transfers > quiet);
}
