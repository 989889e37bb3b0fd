use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::unix::pipe,
};

use super::{ends::Input, ends::Output, *};

const LONG: Duration = Duration::from_secs(60);
const PATIENCE: Patience = Patience { idle: LONG, most: LONG, bytes: u64::MAX };

fn fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    path
}

async fn output_to(path: &Path) -> (DuplexStream, Pumps) {
    let target = Target::parse("stdout", path.to_str().unwrap()).unwrap();
    let output = Output::open("stdout", &target, &Arc::default()).await.unwrap().unwrap();
    let (guest, host) = tokio::io::duplex(4096);
    let mut pumps = Pumps::new(false, None);
    pumps.output(host, output, "stdout");
    (guest, pumps)
}

async fn input_from(path: &Path, terminal: bool) -> (DuplexStream, Pumps) {
    let target = Target::parse("stdin", path.to_str().unwrap()).unwrap();
    let input = Input::open("stdin", &target, &Arc::default()).await.unwrap().unwrap();
    let (guest, host) = tokio::io::duplex(4096);
    let pumps = Pumps::new(terminal, None);
    pumps.input(host, input);
    assert!(pipe::OpenOptions::new().open_sender(path).is_err(), "nobody reads before the start");
    pumps.begin_input();
    soon(async {
        while pipe::OpenOptions::new().open_sender(path).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
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
    assert!(soon(pumps.drained(PATIENCE)).await);
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
    assert!(!pumps.drained(Patience { idle: Duration::from_millis(50), ..PATIENCE }).await);
    assert!(!writer.is_finished());
    let mut got = Vec::new();
    soon(client.read_to_end(&mut got)).await.unwrap();
    assert!(got == expected);
    assert!(soon(pumps.drained(PATIENCE)).await);
}

/// Output that keeps coming is waited for longer than any pause in it, but not for ever, and not however much it is.
#[tokio::test]
async fn output_that_never_ends_is_given_up() {
    let idle = Duration::from_secs(2);
    for patience in
        [Patience { idle, bytes: 1 << 20, ..PATIENCE }, Patience { idle, most: idle * 3, ..PATIENCE }]
    {
        let (mut guest, pumps) = output_to(Path::new("/dev/null")).await;
        let endless = tokio::spawn(async move { while guest.write_all(&[0; 4096]).await.is_ok() {} });
        assert!(!soon(pumps.drained(patience)).await);
        soon(pumps.finish()).await;
        soon(endless).await.unwrap();
    }
    // Slow, and whole: no pause in it is as long as that, and all of it is longer.
    let idle = idle * 3;
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "out");
    let (mut guest, pumps) = output_to(&path).await;
    let mut client = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    tokio::spawn(async move {
        for _ in 0..8 {
            tokio::time::sleep(idle / 6).await;
            guest.write_all(b"x").await.unwrap();
        }
    });
    assert!(soon(pumps.drained(Patience { idle, ..PATIENCE })).await);
    let mut got = Vec::new();
    soon(client.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, [b'x'; 8]);
}

#[tokio::test]
async fn files_are_appended_to_by_both_streams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "before\n").unwrap();
    let (mut out, mut pumps) = output_to(&path).await;
    let target = Target::parse("stderr", &format!("file://{}", path.display())).unwrap();
    let (mut err, host) = tokio::io::duplex(100);
    pumps.output(host, Output::open("stderr", &target, &Arc::default()).await.unwrap().unwrap(), "stderr");
    out.write_all(b"out\n").await.unwrap();
    drop(out);
    err.write_all(b"err\n").await.unwrap();
    drop(err);
    assert!(soon(pumps.drained(PATIENCE)).await);
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

/// More at once than Linux gives a FIFO, so that client and shim take turns less often.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_hands_over_much_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "in");
    let _source = ends::Source::fifo(&path).unwrap();
    let client = pipe::OpenOptions::new().open_sender(&path).unwrap();
    soon(client.writable()).await.unwrap();
    assert_eq!(client.try_write(&vec![b'x'; 1 << 20]).unwrap(), 256 * 1024);
}

#[tokio::test]
async fn input_that_is_closed_before_the_start_is_none() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["in", "removed"] {
        let path = fifo(dir.path(), name);
        let target = Target::parse("stdin", path.to_str().unwrap()).unwrap();
        let input = Input::open("stdin", &target, &Arc::default()).await.unwrap().unwrap();
        let (mut guest, host) = tokio::io::duplex(4096);
        let pumps = Pumps::new(false, None);
        pumps.input(host, input);
        pumps.close_input();
        assert!(is_pending(guest.read(&mut [0])).await);
        if name == "removed" {
            std::fs::remove_file(&path).unwrap();
        }
        pumps.begin_input();
        assert_eq!(soon(guest.read(&mut [0])).await.unwrap(), 0);
    }
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

/// A journal and streams for processes that have no sandbox.
struct Host {
    dir: tempfile::TempDir,
    journal: Arc<Journal>,
    streams: Arc<Streams>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::create(&dir.path().join("journal")).unwrap());
        Self { dir, journal, streams: Arc::default() }
    }

    fn place(&self) -> Place<'_> {
        Place { namespace: "ns", id: "c1", journal: &self.journal, streams: &self.streams }
    }

    /// A logger that is this shell script; `$D` is a directory of its own.
    async fn logger(&self, scheme: &str, script: &str) -> Result<Stdio, StdioError> {
        let path = self.dir.path().join("logger");
        let text = format!("#!/bin/sh\nD={}\n{script}\n", self.dir.path().display());
        std::fs::write(&path, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        let uri = format!("{scheme}://{}?first=1&second", path.display());
        let request = StdioRequest::parse("", &uri, "", false).unwrap();
        Stdio::open(&request, &self.place()).await
    }

    fn written(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

/// Pumps of both outputs, and the guest's ends.
fn pumps(stdio: Stdio) -> (Pumps, DuplexStream, DuplexStream) {
    let mut pumps = Pumps::new(false, stdio.logger);
    let (out, host) = tokio::io::duplex(4096);
    pumps.output(host, stdio.stdout.unwrap(), "stdout");
    let (err, host) = tokio::io::duplex(4096);
    pumps.output(host, stdio.stderr.unwrap(), "stderr");
    (pumps, out, err)
}

#[tokio::test]
async fn a_logger_is_told_whose_output_it_gets_and_has_time_to_write_it() {
    let host = Host::new();
    let script = r#"env | grep ^CONTAINER_ | sort >$D/env; echo "$@" >$D/args;
        echo >&5; exec 5>&-; cat <&3 >$D/out; cat <&4 >$D/err; sleep 0.2; echo end >>$D/out"#;
    for scheme in ["binary", "binary-v2"] {
        let (pumps, mut out, mut err) = pumps(soon(host.logger(scheme, script)).await.unwrap());
        assert_eq!(host.written("env"), "CONTAINER_ID=c1\nCONTAINER_NAMESPACE=ns\n");
        assert_eq!(host.written("args"), "first 1 second \n");
        assert_eq!(host.journal.entries().len(), 1);
        err.write_all(b"to err").await.unwrap();
        out.write_all(b"to out\n").await.unwrap();
        drop((out, err));
        assert!(soon(pumps.drained(PATIENCE)).await);
        soon(pumps.finish()).await;
        assert_eq!((host.written("out").as_str(), host.written("err").as_str()), ("to out\nend\n", "to err"));
        assert!(host.journal.entries().is_empty(), "it was not reaped");
    }
}

#[tokio::test]
async fn a_logger_that_is_not_ready_is_refused() {
    let host = Host::new();
    let error = soon(host.logger("binary-v2", "exit 0")).await.unwrap_err().to_string();
    assert!(error.contains("logger") && error.contains("ready"), "{error}");
    let gone = StdioRequest::parse("", "binary:///no/such/logger", "", false).unwrap();
    let error = soon(Stdio::open(&gone, &host.place())).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/logger"), "{error}");
}

/// By the older contract an end without a word is readiness, and the container goes on without its logger.
#[tokio::test]
async fn a_logger_that_ends_takes_nobody_along() {
    let host = Host::new();
    let (pumps, mut out, err) = pumps(soon(host.logger("binary", "exit 3")).await.unwrap());
    drop(err);
    soon(async { while out.write_all(&[0; 1000]).await.is_ok() {} }).await;
    assert!(soon(pumps.drained(PATIENCE)).await);
    soon(pumps.finish()).await;
    assert!(host.journal.entries().is_empty());
}

#[tokio::test]
async fn both_outputs_go_to_the_file_that_is_named_as_one() {
    let host = Host::new();
    let path = host.dir.path().join("new/log");
    let request = StdioRequest::parse("", &format!("file://{}", path.display()), "/not/this", false).unwrap();
    let (pumps, mut out, mut err) = pumps(Stdio::open(&request, &host.place()).await.unwrap());
    out.write_all(b"out\n").await.unwrap();
    drop(out);
    err.write_all(b"err\n").await.unwrap();
    drop(err);
    assert!(soon(pumps.drained(PATIENCE)).await);
    let text = host.written("new/log");
    assert!(text.contains("out\n") && text.contains("err\n"), "{text}");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let host = Host::new();
    let request = StdioRequest::parse("", "/no/such/fifo", "", false).unwrap();
    let error = Stdio::open(&request, &host.place()).await.unwrap_err().to_string();
    assert!(error.contains("stdout") && error.contains("/no/such/fifo"), "{error}");
    // A terminal has no second output: whatever is named there is not opened.
    let request = StdioRequest::parse("", "", "/no/such/fifo", true).unwrap();
    Stdio::open(&request, &host.place()).await.unwrap();
}
