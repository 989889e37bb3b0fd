//! What a new flow costs.

use serde_json::json;

use crate::Quiet;
use crate::jails::{Host, Jail, alone, evaluations, merge, open_policy, sh};

/// How many rules pf looks at for a new flow, with 10, 100 and 1,000 sandboxes on the host: exact, whatever the machine.
#[test]
#[ignore = "a benchmark"]
fn cost_of_a_new_flow() {
    const FLOWS: u64 = 20;
    let _turn = alone();
    let _quiet = Quiet::new();
    let host = Host::new(None);
    let outside = Jail::new();
    let (_, wire) = outside.wire(None, "192.0.2.2/24", "192.0.2.1/24");
    outside.serve_tcp("0.0.0.0:80");
    outside.sh("route -q add 10.1.0.0/16 192.0.2.1");
    let mut conf = host.conf("pods", "10.1.0.0/16", open_policy());
    merge(&mut conf, json!({"ipMasq": true}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.jail.serve_tcp("0.0.0.0:80");
    let to_b = format!("{}:80", b.ip());
    let mut vms = Vec::new();
    println!("rules looked at for a new TCP flow, address translation included:");
    println!("{:>9} {:>12} {:>12} {:>12}", "sandboxes", "bridged", "to outside", "from outside");
    for sandboxes in [10, 100, 1000] {
        while vms.len() + 2 < sandboxes {
            let id = format!("vm{}", vms.len());
            host.call("ADD", &id, "0", &conf).unwrap_or_else(|error| panic!("ADD {id}: {error}"));
            vms.push(id);
        }
        let ways: [&dyn Fn() -> bool; 3] =
            [&|| a.jail.reaches(&to_b), &|| a.jail.reaches("192.0.2.2:80"), &|| outside.reaches(&to_b)];
        let mut before = evaluations(&[&a, &b]);
        let [bridged, out, inward] = ways.map(|connects| {
            for _ in 0..FLOWS {
                assert!(connects());
            }
            let after = evaluations(&[&a, &b]);
            (after - std::mem::replace(&mut before, after)) as f64 / FLOWS as f64
        });
        println!("{sandboxes:>9} {bridged:>12.1} {out:>12.1} {inward:>12.1}");
    }
    for id in &vms {
        host.call("DEL", id, "0", &conf).unwrap_or_else(|error| panic!("DEL {id}: {error}"));
    }
    for one in [&a, &b] {
        host.del(one, &conf);
    }
    sh(&format!("ifconfig {wire} destroy"));
}
