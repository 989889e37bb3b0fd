use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::unix::pipe,
};

use super::{fifo::Input, fifo::Output, *};

const LONG: Duration = Duration::from_secs(20);

fn fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    path
}

async fn output_to(path: &Path) -> (DuplexStream, Pumps) {
    let target = Target::parse("stdout", path.to_str().unwrap()).unwrap();
    let output = Output::open("stdout", &target).await.unwrap().unwrap();
    let (guest, host) = tokio::io::duplex(4096);
    let pumps = Pumps::new(false);
    pumps.output(host, output, "stdout");
    (guest, pumps)
}

async fn input_from(path: &Path, terminal: bool) -> (DuplexStream, Pumps) {
    let target = Target::parse("stdin", path.to_str().unwrap()).unwrap();
    let input = Input::open("stdin", &target).await.unwrap().unwrap();
    let (guest, host) = tokio::io::duplex(4096);
    let pumps = Pumps::new(terminal);
    pumps.input(host, input);
    (guest, pumps)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("in time")
}

/// Whether `future` is still pending after everything else had its turn.
async fn is_pending(future: impl Future) -> bool {
    tokio::time::timeout(Duration::from_millis(100), future).await.is_err()
}

#[tokio::test]
async fn output_survives_a_client_that_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "out");
    let (mut guest, pumps) = output_to(&path).await;
    let mut first = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    guest.write_all(b"one").await.unwrap();
    let mut buffer = [0; 3];
    soon(first.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"one");
    drop(first);
    guest.write_all(b"two").await.unwrap();
    let mut second = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    soon(second.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"two");
    // The end of the guest's stream is the client's.
    drop(guest);
    assert_eq!(soon(second.read(&mut buffer)).await.unwrap(), 0);
    assert!(soon(pumps.drained(LONG)).await);
}

#[tokio::test]
async fn no_output_is_lost_however_slowly_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "out");
    let (mut guest, pumps) = output_to(&path).await;
    let sent: Vec<u8> = (0..500_000_u32).map(|i| (i % 251) as u8).collect();
    let expected = sent.clone();
    let mut client = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let writer = tokio::spawn(async move { guest.write_all(&sent).await.unwrap() });
    // Nobody reads: draining gives up, and nothing piles up here.
    assert!(!pumps.drained(Duration::from_millis(50)).await);
    assert!(!writer.is_finished());
    let mut got = Vec::new();
    soon(client.read_to_end(&mut got)).await.unwrap();
    assert!(got == expected);
    assert!(soon(pumps.drained(LONG)).await);
}

#[tokio::test]
async fn files_are_appended_to_by_both_streams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "before\n").unwrap();
    let (mut out, pumps) = output_to(&path).await;
    let target = Target::parse("stderr", &format!("file://{}", path.display())).unwrap();
    let (mut err, host) = tokio::io::duplex(100);
    pumps.output(host, Output::open("stderr", &target).await.unwrap().unwrap(), "stderr");
    out.write_all(b"out\n").await.unwrap();
    drop(out);
    err.write_all(b"err\n").await.unwrap();
    drop(err);
    assert!(soon(pumps.drained(LONG)).await);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["before", "err", "out"]);
}

#[tokio::test]
async fn input_ends_when_the_caller_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "in");
    let (mut guest, pumps) = input_from(&path, false).await;
    let mut buffer = [0; 3];
    assert!(is_pending(guest.read(&mut buffer)).await, "no client yet is not the end");
    for word in [b"one", b"two"] {
        let mut client = pipe::OpenOptions::new().open_sender(&path).unwrap();
        client.write_all(word).await.unwrap();
        drop(client);
        soon(guest.read_exact(&mut buffer)).await.unwrap();
        assert_eq!(&buffer, word);
        assert!(is_pending(guest.read(&mut buffer)).await, "a client that leaves is not the end");
    }
    pumps.close_input();
    assert_eq!(soon(guest.read(&mut buffer)).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_is_still_there_is_heard_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "in");
    let (mut guest, pumps) = input_from(&path, false).await;
    let mut client = pipe::OpenOptions::new().open_sender(&path).unwrap();
    pumps.close_input();
    client.write_all(b"late").await.unwrap();
    drop(client);
    let mut got = Vec::new();
    soon(guest.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"late");
}

#[tokio::test]
async fn a_client_hears_of_a_process_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "in");
    let (_guest, pumps) = input_from(&path, true).await;
    let mut client = pipe::OpenOptions::new().open_sender(&path).unwrap();
    pumps.stop_input();
    soon(async {
        while client.write_all(b"x").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let request = StdioRequest::parse("", "/no/such/fifo", "", false).unwrap();
    let error = Stdio::open(&request).await.unwrap_err().to_string();
    assert!(error.contains("stdout") && error.contains("/no/such/fifo"), "{error}");
    // A terminal has no second output: whatever is named there is not opened.
    let request = StdioRequest::parse("", "", "/no/such/fifo", true).unwrap();
    Stdio::open(&request).await.unwrap();
}
