//! Sessions with a guest that runs: `attach console|stream SOCKET [COUNT]` connects so often and says how long
//! each takes, and how long a call does.

use std::time::{Duration, Instant};

use skep_protocol::{Code, Endpoint, Session, api};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (endpoint, count) = match &arguments[..] {
        [kind, path, rest @ ..] => {
            let endpoint = match kind.as_str() {
                "console" => Endpoint::Console(path.into()),
                "stream" => Endpoint::Stream(path.into()),
                other => return Err(format!("{other:?} is neither console nor stream").into()),
            };
            (endpoint, rest.first().map_or(Ok(10), |count| count.parse())?)
        }
        _ => return Err("usage: attach console|stream SOCKET [COUNT]".into()),
    };
    for _ in 0..count {
        let began = Instant::now();
        let session = Session::connect(&endpoint, Duration::from_secs(60)).await?;
        let connected = began.elapsed();
        let mut calls = Vec::new();
        for _ in 0..10 {
            let began = Instant::now();
            let request = api::ContainerRequest { container_id: "none".to_owned(), ..Default::default() };
            match session.agent().list_processes(&request).await {
                Err(error) if error.code == Code::NOT_FOUND => {}
                other => println!("unexpected: {other:?}"),
            }
            calls.push(began.elapsed());
        }
        calls.sort();
        println!(
            "connected in {connected:?}; a call takes {:?} to {:?}, mostly {:?}",
            calls[0], calls[9], calls[5]
        );
        session.close().await;
    }
    Ok(())
}
