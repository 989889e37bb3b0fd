//! What paths between sandboxes carry.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::jails::{Host, Jail, Node, alone, merge, open_policy, sh};
use crate::median;

/// TCP from one stack to another: Mbit/s, and the median round trip of four bytes.
fn transfer(from: &Jail, to: &Jail, at: &str) -> String {
    to.serve_tcp(&format!("{at}:90"));
    let (address, sink) = (format!("{at}:90"), format!("{at}:91"));
    to.serve(move || {
        let Ok(listener) = TcpListener::bind(&sink) else { return };
        let Ok((mut stream, _)) = listener.accept() else { return };
        let (mut total, mut buffer) = (0_u64, vec![0; 1 << 17]);
        let mut start = None;
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            start.get_or_insert_with(Instant::now);
            total += n as u64;
        }
        let seconds = start.map_or(1.0, |start| start.elapsed().as_secs_f64());
        let _ = write!(stream, "{:.0}", total as f64 * 8.0 / seconds / 1e6);
    });
    let sink = format!("{at}:91");
    from.tell(move || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream.set_nodelay(true).ok()?;
        let mut times = Vec::new();
        for _ in 0..400 {
            let start = Instant::now();
            stream.write_all(b"ping").ok()?;
            stream.read_exact(&mut [0; 4]).ok()?;
            times.push(start.elapsed());
        }
        let mut stream = TcpStream::connect(&sink).ok()?;
        let (start, chunk) = (Instant::now(), vec![0; 1 << 17]);
        while start.elapsed() < Duration::from_secs(5) {
            stream.write_all(&chunk).ok()?;
        }
        stream.shutdown(std::net::Shutdown::Write).ok()?;
        let mut rate = String::new();
        stream.read_to_string(&mut rate).ok()?;
        Some(format!("{rate} Mbit/s, round trip {:?}", median(times)))
    })
}

/// Throughput and round trip between two jails: on a plain epair, on a plain bridge, as sandboxes on one bridge, and across
/// VXLAN with a kernel's plain link at the other end.
#[test]
#[ignore = "a benchmark"]
fn throughput_and_round_trip() {
    let _turn = alone();
    let host = Host::new(None);
    let (one, two) = (Jail::new(), Jail::new());
    one.wire(Some(&two), "10.9.0.1/24", "10.9.0.2/24");
    println!("a plain epair: {}", transfer(&one, &two, "10.9.0.2"));
    let ends = [Jail::new(), Jail::new()];
    sh("b=$(ifconfig bridge create); ifconfig $b name plainbr up >/dev/null");
    for (n, end) in ends.iter().enumerate() {
        sh(&format!(
            "a=$(ifconfig epair create); ifconfig $a up; ifconfig plainbr addm $a; ifconfig ${{a%a}}b vnet {jail}; \
             jexec {jail} ifconfig ${{a%a}}b inet 10.8.0.{}/24 up",
            n + 1,
            jail = end.name
        ));
    }
    println!("a plain bridge: {}", transfer(&ends[0], &ends[1], "10.8.0.2"));
    sh(
        "for i in $(ifconfig plainbr | awk '/member:/ {print $2}'); do ifconfig $i destroy; done; ifconfig plainbr destroy",
    );
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    println!("two sandboxes on one bridge: {}", transfer(&a.jail, &b.jail, &b.ip()));
    let far = Node::new("192.0.2.1", "192.0.2.2");
    far.jail.sh("route -q add 10.1.0.0/24 192.0.2.1");
    println!(
        "the wire between two hosts, to a jail behind it: {}",
        transfer(&a.jail, &far.jail, "192.0.2.2")
    );
    let mut vpc = host.conf("vpc", "10.5.0.0/24", open_policy());
    merge(
        &mut vpc,
        json!({"vxlan": {"vni": 100, "nodes": [
        {"name": "here", "address": "192.0.2.1"}, {"name": "there", "address": "192.0.2.2"}]}}),
    );
    let c = host.add("c", &vpc);
    far.link(100, "10.5.0.77/24");
    println!("across VXLAN: {}", transfer(&c.jail, &far.jail, "10.5.0.77"));
    host.del(&c, &vpc);
    drop(far);
    for one in [&a, &b] {
        host.del(one, &conf);
    }
}
