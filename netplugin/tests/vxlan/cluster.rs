//! Hosts on one wire, and a network over them.

use std::time::Duration;

use crate::support;
use crate::support::frames::slow_wire;
use crate::support::{Container, Host, Ns, open_policy};
use serde_json::{Value, json};
use skep_cni::cni::NetConf;
use skep_cni::network::Store;
use skep_cni::plugin;

/// Hosts on one wire.
pub struct Cluster {
    pub switch: Ns,
    pub hosts: Vec<Host>,
    mode: &'static str,
    ipv6: bool,
}

impl Cluster {
    pub fn new(count: usize, mode: &'static str, ipv6: bool, mtu: u32) -> Self {
        let switch = Ns::new();
        switch.ip("link add sw type bridge mcast_snooping 0");
        switch.ip("link set sw up");
        let hosts = (0..count).map(|_| Host::new()).collect();
        let cluster = Self { switch, hosts, mode, ipv6 };
        for (n, host) in cluster.hosts.iter().enumerate() {
            cluster.plug(&host.ns, n, mtu);
        }
        cluster
    }

    /// As far from each other as these: every frame takes `delay` to the switch and from it, every so many is lost.
    pub fn far_apart(count: usize, mode: &'static str, delay: Duration, lose_every: usize) -> Self {
        let mut cluster = Self::new(0, mode, false, 1500);
        for n in 0..count {
            let host = Host::new();
            let line = Ns::new();
            host.ns.wire("u0", &line, "near");
            line.wire("far", &cluster.switch, &format!("p{n}"));
            cluster.switch.ip(&format!("link set p{n} master sw"));
            slow_wire(&line, ["near", "far"], delay, lose_every);
            host.ns.ip(&format!("addr add {}/24 dev u0", Self::v4(n)));
            host.ns.ip(&format!("addr add {}/64 dev u0 nodad", Self::v6(n)));
            host.ns.settle(&Self::v6(n));
            cluster.hosts.push(host);
        }
        cluster
    }

    pub fn plug(&self, ns: &Ns, n: usize, mtu: u32) {
        ns.wire("u0", &self.switch, &format!("p{n}"));
        ns.ip(&format!("link set u0 mtu {mtu}"));
        self.switch.ip(&format!("link set p{n} mtu {mtu} master sw"));
        ns.ip(&format!("addr add {}/24 dev u0", Self::v4(n)));
        ns.ip(&format!("addr add {}/64 dev u0 nodad", Self::v6(n)));
        ns.settle(&Self::v6(n));
    }

    pub fn v4(n: usize) -> String {
        format!("198.51.100.{}", n + 1)
    }

    pub fn v6(n: usize) -> String {
        format!("2001:db8:1::{:x}", n + 1)
    }

    pub fn address(&self, n: usize) -> String {
        if self.ipv6 { Self::v6(n) } else { Self::v4(n) }
    }

    /// The configuration of a host when these nodes are declared. Each host gives out addresses of its own range.
    pub fn conf(&self, n: usize, nodes: &[usize]) -> Value {
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|n| json!({"name": format!("n{n}"), "address": self.address(*n), "id": n + 1}))
            .collect();
        let mut vxlan = json!({"vni": 100, "mode": self.mode, "nodes": nodes});
        if self.mode == "mesh" {
            vxlan["peerNetwork"] = json!("172.16.0.0/20");
        }
        let ranges = json!([[{"subnet": "10.1.0.0/16", "rangeStart": format!("10.1.{}.10", n + 1), "rangeEnd": format!("10.1.{}.250", n + 1)}]]);
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "vpc", "type": "skep-cni", "dataDir": self.hosts.get(n).map(Host::data_dir),
            "ipam": {"type": "skep", "ranges": ranges}, "vxlan": vxlan,
        });
        support::merge(&mut conf, open_policy());
        conf
    }

    pub fn all(&self) -> Vec<usize> {
        (0..self.hosts.len()).collect()
    }

    pub fn populate(&self) -> Vec<Container> {
        self.all()
            .into_iter()
            .map(|n| self.hosts[n].add(&format!("c{n}"), &self.conf(n, &self.all())))
            .collect()
    }

    pub fn teardown(&self, containers: &[Container]) {
        for (n, container) in containers.iter().enumerate() {
            self.hosts[n].del(container, &self.conf(n, &self.all()));
        }
    }

    /// Brings a host into line with a declaration.
    pub fn up(&self, n: usize, nodes: &[usize]) {
        let conf = NetConf::parse(self.conf(n, nodes).to_string().as_bytes()).unwrap();
        let store = Store::new(self.hosts[n].data_dir());
        self.hosts[n].ns.run(|| {
            plugin::up(&skep_cni::datapath::Host::new().unwrap(), &store, &conf).unwrap();
        });
    }
}

pub fn everybody_reaches_everybody(containers: &[Container]) {
    for container in containers {
        container.ns.serve_tcp("0.0.0.0:80");
    }
    for from in containers {
        for to in containers {
            assert!(from.ns.reaches(&format!("{}:80", to.ip())), "{} to {}", from.id, to.id);
        }
    }
}

pub fn mtu_of(container: &Container) -> u64 {
    container.result["interfaces"][2]["mtu"].as_u64().unwrap()
}
