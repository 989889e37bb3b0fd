//! Groups whose members are on several hosts.

use crate::cluster::Cluster;
use crate::support::{Container, Host, Ns, PATIENCE, SILENCE, echoes, merge, open_policy};
use serde_json::{Value, json};
use skep_cni::cni::NetConf;
use skep_cni::mac::Mac;
use skep_cni::network::Store;
use skep_cni::plugin::{self, LivePolicy};
use skep_cni::policy::GroupName;
use skep_cni::vpc::{Declaration, plugin_config};

/// A network with groups over the hosts of a cluster, by a declaration as `skep net` makes them.
struct Site {
    cluster: Cluster,
    vpc: Declaration,
}

fn name(text: &str) -> GroupName {
    text.to_owned().try_into().unwrap()
}

fn group(group: &str) -> Value {
    json!({"network.skep.org/group": group})
}

fn own(policy: Value) -> Value {
    json!({"network.skep.org/policy": policy.to_string()})
}

impl Site {
    /// As many hosts, of which the first `nodes` are declared.
    fn new(hosts: usize, nodes: usize, mode: &'static str, policy: Value) -> Self {
        let mut policy = policy;
        policy["policy"]["annotations"] = json!(true);
        let mut vpc = json!({
            "version": 1, "name": "vpc", "revision": 1, "vni": 100, "mode": mode, "nodes": [], "config": policy,
            "subnets": ["10.1.0.0/16", "fd01::/64"], "maxNodes": 15, "maxGroups": 7,
        });
        if mode == "mesh" {
            vpc["peerNetwork"] = json!("172.16.0.0/20");
        }
        let nodes: Vec<Value> = (0..nodes)
            .map(|n| json!({"name": format!("n{n}"), "address": Cluster::v4(n), "id": n + 1}))
            .collect();
        vpc["nodes"] = json!(nodes);
        vpc["groups"] = json!([{"name": "web", "id": 1}, {"name": "db", "id": 2}]);
        let vpc = Declaration::parse(vpc.to_string().as_bytes()).unwrap();
        Self { cluster: Cluster::new(hosts, mode, false, 1500), vpc }
    }

    fn host(&self, n: usize) -> &Host {
        &self.cluster.hosts[n]
    }

    fn conf(&self, n: usize) -> Value {
        let node = self.vpc.find(&format!("n{n}")).unwrap();
        let mut conf = plugin_config(&self.vpc, node, None).unwrap();
        conf["dataDir"] = json!(self.host(n).data_dir());
        conf
    }

    fn conf_with(&self, n: usize, annotations: Value) -> Value {
        let mut conf = self.conf(n);
        merge(&mut conf, json!({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}}));
        conf
    }

    /// A sandbox on a host that echoes on port 80 and 81.
    fn add(&self, n: usize, id: &str, annotations: Value) -> Container {
        let container = self.host(n).add(id, &self.conf_with(n, annotations));
        for port in [80, 81] {
            container.ns.serve_tcp(&format!("[::]:{port}"));
        }
        container
    }

    fn up(&self, n: usize) -> Result<(), String> {
        let conf = NetConf::parse(self.conf(n).to_string().as_bytes()).unwrap();
        let store = Store::new(self.host(n).data_dir());
        self.host(n).ns.run(|| {
            let up = plugin::up(&skep_cni::datapath::Host::new().unwrap(), &store, &conf);
            up.map(|_| ()).map_err(|error| error.to_string())
        })
    }

    /// Changes a live sandbox's policy.
    fn set_policy(&self, n: usize, id: &str, policy: Value) -> Result<(), String> {
        let store = Store::new(self.host(n).data_dir());
        let policy = serde_json::from_value(policy).unwrap();
        self.host(n).ns.run(|| {
            let datapath = skep_cni::datapath::Host::new().unwrap();
            let mut live = LivePolicy::open(&datapath, &store, "vpc", id, "eth0").unwrap();
            live.replace(policy).map_err(|error| error.to_string())
        })
    }
}

/// What rules of a host say of who the other end is.
fn peers(host: &Host) -> Vec<String> {
    let rules = host.ns.ruleset();
    rules.lines().filter(|line| line.contains("addr {")).map(|line| line.trim().to_owned()).collect()
}

/// A port of a sandbox by either of its addresses.
fn both(to: &Container, port: u16) -> [String; 2] {
    [format!("{}:{port}", to.address(0)), format!("[{}]:{port}", to.address(1))]
}

/// Whether one reaches a port of another by both families.
fn reaches(from: &Container, to: &Container, port: u16) -> bool {
    both(to, port).iter().all(|at| from.ns.reaches(at))
}

/// Whether it does by neither.
fn blocked(from: &Container, to: &Container, port: u16) -> bool {
    both(to, port).iter().all(|at| from.ns.blocked(at))
}

#[test]
fn rules_about_a_group_are_true_of_members_on_every_node() {
    needs_root!();
    for mode in ["flood", "mesh"] {
        let web = json!([{"group": "web", "protocol": "tcp", "ports": [80]}]);
        let policy = json!({"policy": {"egress": {"allow": ["any"]}, "ingress": {"allow": web}}});
        let mut site = Site::new(3, 2, mode, policy);
        // Stays as the plugin sets it, and brings routes with it.
        site.host(0).ns.set_sysctl("ipv6/conf/all/forwarding", "1");
        let before = site.host(0).ns.census();
        let db = site.add(0, "db", group("db"));
        let near = site.add(0, "near", group("web"));
        let far = site.add(1, "far", group("web"));
        let stranger = site.add(1, "stranger", json!({}));
        assert_eq!(
            [&db, &near, &far, &stranger].map(Container::ip),
            ["10.1.66.0", "10.1.34.0", "10.1.36.0", "10.1.4.0"]
        );
        for member in [&near, &far] {
            assert!(reaches(member, &db, 80), "{mode}: {}", member.id);
            assert!(blocked(member, &db, 81), "{mode}: {}", member.id);
        }
        assert!(blocked(&stranger, &db, 80), "{mode}");
        assert!(blocked(&db, &far, 80), "{mode}: it is of another group");

        // A member on a node that is declared later: no rule of any sandbox changes by it.
        let kept = peers(site.host(0));
        let mut live = far.ns.connect(&format!("{}:80", db.ip()), PATIENCE).unwrap();
        site.vpc.add_node(&format!("n2={}", Cluster::v4(2)).parse().unwrap()).unwrap();
        for n in [0, 1, 2] {
            site.up(n).unwrap();
        }
        let later = site.add(2, "later", group("web"));
        assert!(reaches(&later, &db, 80), "{mode}");
        assert!(blocked(&later, &db, 81), "{mode}");
        assert_eq!(peers(site.host(0)), kept);
        assert!(kept.iter().any(|rule| rule.contains("10.1.32.0/19")), "{kept:?}");
        assert!(echoes(&mut live));
        for container in [&db, &near] {
            site.host(0).check(container, &site.conf(0)).unwrap();
            site.host(0).del(container, &site.conf(0));
        }
        site.host(0).ns.run(|| {
            let store = Store::new(site.host(0).data_dir());
            plugin::down(&skep_cni::datapath::Host::new().unwrap(), &store, "vpc").unwrap();
        });
        assert_eq!(site.host(0).ns.census(), before);
    }
}

#[test]
fn a_group_is_denied_on_every_node_and_flows_end_when_it_is() {
    needs_root!();
    let site = Site::new(3, 3, "flood", open_policy());
    let db = site.add(0, "db", group("db"));
    let members =
        [site.add(0, "w0", group("web")), site.add(1, "w1", group("web")), site.add(2, "w2", group("web"))];
    let other = site.add(1, "other", json!({}));
    for one in members.iter().chain([&other]) {
        assert!(reaches(one, &db, 80), "{}", one.id);
    }
    let live = |to: &Container| -> Vec<_> {
        let all = members.iter().chain([&other]);
        all.flat_map(|from| both(to, 80).map(|at| from.ns.connect(&at, PATIENCE).unwrap())).collect()
    };
    // To it, and what the members have open ends; what others have does not.
    let mut flows = live(&db);
    let deny = |direction: &str, list: Value| {
        let mut policy = json!({"egress": {"allow": ["any"]}, "ingress": {"allow": ["any"]}});
        policy[direction]["deny"] = list;
        policy
    };
    site.set_policy(0, "db", deny("ingress", json!([{"group": "web", "protocol": "tcp", "ports": [80]}])))
        .unwrap();
    let spared = flows.split_off(2 * members.len());
    assert!(spared.into_iter().all(|mut flow| echoes(&mut flow)));
    for flow in &mut flows {
        flow.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(!echoes(flow));
    }
    for member in &members {
        assert!(blocked(member, &db, 80), "{}", member.id);
        assert!(reaches(member, &db, 81), "{}", member.id);
    }
    assert!(reaches(&other, &db, 80));
    // From it.
    site.set_policy(0, "db", deny("egress", json!([{"group": "web"}]))).unwrap();
    for member in &members {
        assert!(blocked(&db, member, 80), "{}", member.id);
        assert!(reaches(member, &db, 80), "{}: its answers pass", member.id);
    }
    assert!(reaches(&db, &other, 80));
    // A single address that comes and goes beside the group.
    let rest = json!([{"group": "web"}, "192.0.2.1"]);
    site.set_policy(0, "db", deny("egress", rest)).unwrap();
    site.set_policy(0, "db", deny("egress", json!([{"group": "web"}, "192.0.2.2"]))).unwrap();
    assert!(blocked(&db, &members[2], 80));
    site.set_policy(0, "db", deny("egress", json!([]))).unwrap();
    assert!(reaches(&db, &members[2], 80));
}

#[test]
fn link_local_addresses_are_no_way_round_a_denied_group() {
    needs_root!();
    let site = Site::new(2, 2, "flood", open_policy());
    let deny = own(json!({"ingress": {"deny": [{"group": "web"}]}}));
    let target = site.add(0, "target", deny);
    let open = site.add(0, "open", json!({}));
    let members = [site.add(0, "w0", group("web")), site.add(1, "w1", group("web"))];
    for member in &members {
        let index = member.ns.run(|| nix::net::if_::if_nametoindex("eth0").unwrap());
        let at = |to: &Container| format!("[{}%{index}]:80", Mac(to.mac()).link_local());
        // Neighbours find each other nevertheless.
        assert!(member.ns.reaches(&at(&open)), "{}", member.id);
        assert!(member.ns.blocked(&at(&target)), "{}", member.id);
        assert!(blocked(member, &target, 80), "{}", member.id);
    }
}

#[test]
fn a_sandbox_has_addresses_of_its_group_and_what_is_not_declared_is_refused() {
    needs_root!();
    let site = Site::new(1, 1, "flood", open_policy());
    let host = site.host(0);
    let refused = |conf: Value, want: &str| {
        let files = host.files();
        let error = host.call("ADD", "x", "eth0", &Ns::new().path(), &conf).unwrap_err();
        assert!(error["msg"].as_str().unwrap().contains(want), "{want}: {error}");
        assert_eq!(host.files(), files);
    };
    let wish = |annotations: Value, ips: Value| {
        let mut conf = site.conf_with(0, annotations);
        conf["runtimeConfig"]["ips"] = ips;
        conf
    };
    let db = host.add("db", &wish(group("db"), json!(["10.1.66.9"])));
    assert_eq!(db.ip(), "10.1.66.9");
    assert_eq!(db.address(1), "fd01::4200:0:0:0", "the other family's is of the group's, too");
    refused(wish(group("web"), json!(["10.1.66.10"])), "address 10.1.66.10 is in no range of group `web`");
    refused(wish(group("web"), json!(["10.1.2.10"])), "address 10.1.2.10 is in no range of group `web`");
    refused(
        wish(json!({}), json!(["10.1.66.10"])),
        "address 10.1.66.10 is group `db`'s, and the sandbox is not in it",
    );
    refused(wish(group("web"), json!(["10.1.36.10"])), "address 10.1.36.10 is in no range of this network");
    refused(
        site.conf_with(0, group("cache")),
        "group `cache` is not declared on this network (declared: db, web)",
    );
    let cache = json!({"ingress": {"allow": [{"group": "cache"}]}});
    refused(site.conf_with(0, own(cache.clone())), "group `cache` is not declared");
    let error = site.set_policy(0, "db", cache).unwrap_err();
    assert!(error.contains("group `cache` is not declared"), "{error}");
    // An address that another plugin of the chain gave is looked at, too.
    let ns = Ns::new();
    host.ns.ip(&format!("link add other type veth peer name eth1 netns {}", ns.path()));
    host.ns.ip("link set other up mtu 1450 master skb-vpc");
    ns.ip("link set eth1 mtu 1450");
    let mut chained = site.conf_with(0, group("web"));
    chained.as_object_mut().unwrap().remove("ipam");
    chained["prevResult"] = json!({
        "cniVersion": "1.0.0", "ips": [{"address": "10.1.66.77/16", "interface": 1}],
        "interfaces": [{"name": "other"}, {"name": "eth1", "sandbox": ns.path()}],
    });
    let error = host.call("ADD", "x", "eth1", &ns.path(), &chained).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("address 10.1.66.77 is in no range of group"), "{error}");
    host.check(&db, &site.conf(0)).unwrap();
}

#[test]
fn declared_groups_change_without_disturbing_and_not_below_a_live_sandbox() {
    needs_root!();
    let mut site = Site::new(2, 2, "flood", open_policy());
    let only_web = own(json!({"ingress": {"deny": [{"group": "web"}]}}));
    let (db, guarded) = (site.add(0, "db", group("db")), site.add(0, "guarded", only_web));
    let far = site.add(1, "far", group("web"));
    let mut live = far.ns.connect(&format!("{}:80", db.ip()), PATIENCE).unwrap();
    let change = |site: &mut Site, change: &dyn Fn(&mut Declaration)| {
        let kept = site.vpc.clone();
        change(&mut site.vpc);
        let done = site.up(0);
        if done.is_err() {
            site.vpc = kept;
        }
        done
    };
    change(&mut site, &|vpc| vpc.add_group(&name("cache")).unwrap()).unwrap();
    let cache = site.add(0, "cache", group("cache"));
    assert!(reaches(&far, &cache, 80));
    let error = change(&mut site, &|vpc| vpc.remove_group(&name("db")).unwrap()).unwrap_err();
    assert!(
        error.contains("as long as network vpc has container `db`: group `db` is not declared"),
        "{error}"
    );
    // Somebody's own rule speaks of it: without it, its members would be let in.
    let error = change(&mut site, &|vpc| vpc.remove_group(&name("web")).unwrap()).unwrap_err();
    assert!(error.contains("has container `guarded`: group `web` is not declared"), "{error}");
    site.host(0).del(&cache, &site.conf(0));
    change(&mut site, &|vpc| vpc.remove_group(&name("cache")).unwrap()).unwrap();
    assert!(echoes(&mut live));
    assert!(blocked(&far, &guarded, 80));
    for container in [&db, &guarded] {
        site.host(0).check(container, &site.conf(0)).unwrap();
    }
}

#[test]
fn live_sandboxes_follow_a_group_whose_ranges_change() {
    needs_root!();
    let host = Host::new();
    let conf = |web: &str| {
        let ranges = |start: &str, end: &str| json!([[{"subnet": "10.1.0.0/16", "rangeStart": start, "rangeEnd": end}]]);
        let mut conf = host.conf("vpc", "10.1.0.0/16", open_policy());
        conf["ipam"] = json!({"type": "skep", "ranges": ranges("10.1.0.2", "10.1.0.9"), "groups": {"web": ranges("10.1.16.0", "10.1.16.9")}});
        conf["policy"]["groups"] = json!({"web": [web]});
        conf["policy"]["annotations"] = json!(true);
        conf
    };
    let with = |conf: &Value, annotations: Value| {
        let mut conf = conf.clone();
        merge(&mut conf, json!({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}}));
        conf
    };
    let narrow = conf("10.1.16.0/24");
    let guarded = host.add("guarded", &with(&narrow, own(json!({"ingress": {"deny": [{"group": "web", "protocol": "udp"}, {"group": "web", "protocol": "tcp"}]}}))));
    guarded.ns.serve_tcp("[::]:80");
    // Of an address that is no group's yet: asked for outside of any group's range.
    let mut asking = narrow.clone();
    asking["ipam"]["ranges"][0]
        .as_array_mut()
        .unwrap()
        .push(json!({"subnet": "10.1.0.0/16", "rangeStart": "10.1.17.1", "rangeEnd": "10.1.17.9"}));
    asking["runtimeConfig"]["ips"] = json!(["10.1.17.5"]);
    let later = host.add("later", &asking);
    assert!(later.ns.reaches(&format!("{}:80", guarded.ip())));
    let wide = conf("10.1.16.0/23");
    // It has an address of the group now, and is not in it.
    let error = host.call("ADD", "x", "eth0", &Ns::new().path(), &wide).unwrap_err();
    assert!(
        error["msg"].as_str().unwrap().contains("has container `later`: address 10.1.17.5 is group `web`'s"),
        "{error}"
    );
    host.del(&later, &narrow);
    let member = host.add("member", &with(&wide, group("web")));
    assert!(member.ns.blocked(&format!("{}:80", guarded.ip())));
    // In the kernel the live one has the wide range.
    assert!(host.ns.ruleset().contains("10.1.16.0/23"), "{}", host.ns.ruleset());
    host.check(&guarded, &wide).unwrap();
    let error = host
        .call("ADD", "x", "eth0", &Ns::new().path(), &host.conf("vpc", "10.1.0.0/16", open_policy()))
        .unwrap_err();
    assert!(
        error["msg"].as_str().unwrap().contains("cannot begin or cease to declare its groups"),
        "{error}"
    );
}
