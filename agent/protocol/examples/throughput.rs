//! How fast stdio streams are over each kind of channel, and what they cost in system calls:
//! `cargo run --release -p skep-protocol --example throughput`
//!
//! Host and guest share one socket pair and, as the agent does, one thread; `2 threads` gives each its own.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use skep_protocol::api::{self, Agent, TtrpcContext};
use skep_protocol::link::Limits;
use skep_protocol::testing::{console_session_over, paced_session_over, serve_console, session_over};
use skep_protocol::{PROTOCOL_VERSION, Session, StdioRegistry};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream, ReadBuf};
use tokio::net::UnixStream;

const MB: usize = 1_000_000;
const AMOUNT: usize = 256 * MB;
const WAIT: Duration = Duration::from_secs(10);

/// Counts reads and writes, each a system call.
struct Counted<T>(T, Arc<AtomicU64>);

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Writes `AMOUNT` to stdout, or reads stdin to its end.
struct Mill(StdioRegistry);

#[async_trait::async_trait]
impl Agent for Mill {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let tokens = request.stdio.unwrap_or_default();
        let fail = |error: &dyn std::fmt::Display| api::error(ttrpc::Code::INTERNAL, error.to_string());
        if tokens.stdout == 0 {
            let mut input = self.0.claim(tokens.stdin, WAIT).await.map_err(|e| fail(&e))?;
            consume(&mut input).await.map_err(|e| fail(&e))?;
        } else {
            let mut output = self.0.claim(tokens.stdout, WAIT).await.map_err(|e| fail(&e))?;
            tokio::spawn(async move { produce(&mut output).await });
        }
        Ok(api::CreateContainerResponse::default())
    }
}

async fn produce(to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let block = vec![7; 16 * 1024];
    let mut left = AMOUNT;
    while left > 0 {
        let now = left.min(block.len());
        to.write_all(&block[..now]).await?;
        left -= now;
    }
    to.shutdown().await
}

async fn consume(from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut block = vec![0; 16 * 1024];
    while from.read(&mut block).await? > 0 {}
    Ok(())
}

async fn measure(
    session: &Session,
    calls: [&AtomicU64; 2],
    name: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    for to_guest in [true, false] {
        let token = session.draw_token();
        let mut stream = session.open_stdio(token).await?;
        let (stdin, stdout) = if to_guest { (token, 0) } else { (0, token) };
        let tokens = api::Stdio { stdin, stdout, ..Default::default() };
        let request = api::CreateContainerRequest { stdio: Some(tokens).into(), ..Default::default() };
        let before = calls.map(|count| count.load(Ordering::Relaxed));
        let began = Instant::now();
        let agent = session.agent().with_timeout(Duration::from_secs(600));
        let call = agent.create_container(&request);
        if to_guest {
            let (answer, written) = tokio::join!(call, produce(&mut stream));
            answer?;
            written?;
        } else {
            call.await?;
            consume(&mut stream).await?;
        }
        let seconds = began.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let [host, guest] =
            [0, 1].map(|i| (calls[i].load(Ordering::Relaxed) - before[i]) as f64 / (AMOUNT / MB) as f64);
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let rate = (AMOUNT / MB) as f64 / seconds;
        let way = if to_guest { "to the guest" } else { "to the host" };
        println!("{name:<32} {way:<13} {rate:7.0} MB/s, calls per MB: host {host:5.0}, guest {guest:5.0}");
    }
    Ok(())
}

/// One kind of channel. `Some(limits)`: a console of a guest with these.
async fn run(name: &str, console: Option<Limits>, threads: bool) -> Result<(), Box<dyn std::error::Error>> {
    let (host, guest) = UnixStream::pair()?;
    let guest = guest.into_std()?;
    let counts = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let guest_count = Arc::clone(&counts[1]);
    let serve = async move {
        let guest = Counted(UnixStream::from_std(guest)?, guest_count);
        let stdio = StdioRegistry::new();
        let mill = Arc::new(Mill(stdio.clone()));
        if let Some(limits) = console {
            serve_console(guest, limits, mill, stdio).await
        } else {
            skep_protocol::serve_channel(guest, skep_protocol::ChannelKind::Stream, mill, stdio).await
        }
    };
    if threads {
        std::thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve)
        });
    } else {
        tokio::spawn(serve);
    }
    let mut host = Counted(host, Arc::clone(&counts[0]));
    let session = if console == Some(Limits::PACED_GUEST) {
        paced_session_over(host).await.ok_or("no session")?
    } else if console.is_some() {
        console_session_over(host).await.ok_or("no session")?
    } else {
        let mut greeting = [0; 7];
        host.write_all(format!("skep {PROTOCOL_VERSION}\n").as_bytes()).await?;
        host.read_exact(&mut greeting).await?;
        session_over(BufStream::new(host)).await?
    };
    measure(&session, [&counts[0], &counts[1]], name).await?;
    session.close().await;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (suffix, threads) in [("", false), (", 2 threads", true)] {
        run(&format!("plain{suffix}"), None, threads).await?;
        run(&format!("Linux console{suffix}"), Some(Limits::LINUX_GUEST), threads).await?;
        run(&format!("paced Linux console{suffix}"), Some(Limits::PACED_GUEST), threads).await?;
        run(&format!("FreeBSD console{suffix}"), Some(Limits::FREEBSD_GUEST), threads).await?;
    }
    Ok(())
}
