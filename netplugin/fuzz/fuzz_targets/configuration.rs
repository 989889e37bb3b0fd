//! Any bytes as a network's configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep_cni::cni::NetConf;
use skep_cni::ipam::{Allocator, IpamConfig, Used};

fuzz_target!(|bytes: &[u8]| {
    let Ok(conf) = NetConf::parse(bytes) else { return };
    assert!((1..=15).contains(&conf.bridge.len()));
    if let Some(vpc) = &conf.uplink.vpc {
        for node in &vpc.nodes {
            if let Ok(links) = vpc.plan(&conf.name, node) {
                assert!(links.iter().all(|link| link.name.len() <= 15 && link.vni < 1 << 24));
            }
        }
    }
    if let IpamConfig::Own(own) = &conf.ipam {
        let mut used = Used::default();
        if let Ok(leases) = Allocator::new(own).allocate(&mut used, &[]) {
            assert_eq!(used.addresses().count(), leases.len());
        }
    }
});
