//! Any bytes as the channel of a host's session.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use skep_protocol::api;
use skep_protocol::testing::session_over;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    runtime.block_on(async {
        let (host, mut guest) = tokio::io::duplex(1 << 16);
        let session = session_over(host).await.expect("session");
        let mut output = session.open_stdio(session.draw_token()).await.expect("stream");
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 1000];
            while let Ok(1..) = output.read(&mut buffer).await {}
        });
        let agent = session.agent().with_timeout(Duration::from_secs(5));
        let call = tokio::spawn(async move { agent.shutdown(&api::Empty::default()).await });
        for piece in pieces {
            let _ = guest.write_all(&piece).await;
            tokio::task::yield_now().await;
        }
        drop(guest);
        let closed = session.closed().await;
        assert!(!closed.reason.contains("task is gone"), "it panicked");
        reader.await.expect("reader");
        let _ = call.await.expect("call");
    });
});
