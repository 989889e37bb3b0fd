//! The network outside behind a card of the machine's, and a VM on a network with it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Host, Jail, merge, sh};

/// The network outside, and the card of the machine's that it is behind.
pub struct Outside {
    pub jail: Jail,
    pub far: String,
    pub card: String,
}

impl Outside {
    pub fn new() -> Self {
        let jail = Jail::new();
        let far = sh("ifconfig epair create").trim().to_owned();
        let card = far.strip_suffix('a').map(|stem| format!("{stem}b")).unwrap();
        sh(&format!("ifconfig {card} up; ifconfig {far} vnet {}", jail.name));
        jail.sh(&format!(
            "ifconfig {far} inet 203.0.113.1/24 up; ifconfig {far} inet6 -ifdisabled no_dad 2001:db8:5::1/64 up; \
             ifconfig lo0 inet6 2001:db8:9::1/128; sysctl -q net.inet6.ip6.forwarding=1"
        ));
        Self { jail, far, card }
    }

    pub fn mac(&self) -> [u8; 6] {
        let text = self.jail.sh(&format!("ifconfig {} | awk '/ether/ {{print $2}}'", self.far));
        let mut octets = text.trim().split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap());
        std::array::from_fn(|_| octets.next().unwrap())
    }

    pub fn conf(&self, host: &Host<'_>, more: Value) -> Value {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "public", "type": "skep-cni", "dataDir": host.data_dir(),
            "uplink": self.card, "ipam": {"type": "dhcp"}});
        merge(&mut conf, more);
        conf
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        sh(&format!("ifconfig {} destroy || true", self.card));
    }
}

/// A VM that speaks and hears by its tap.
pub struct Vm {
    tap: File,
    pub mac: [u8; 6],
    pub ip: String,
}

impl Vm {
    pub fn start(result: &Value) -> Self {
        use std::os::unix::fs::OpenOptionsExt as _;
        let name = result["interfaces"][1]["name"].as_str().unwrap();
        let path = format!("/dev/{name}");
        let tap = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let mac = result["interfaces"][2]["mac"].as_str().unwrap();
        let mut octets = mac.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap());
        let mac = std::array::from_fn(|_| octets.next().unwrap());
        let ip = result["ips"][0]["address"].as_str().unwrap_or_default();
        // The first that opens it raises it.
        sh(&format!("ifconfig {name} up"));
        Self { tap, mac, ip: ip.split('/').next().unwrap().to_owned() }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.tap.write_all(frame).unwrap();
    }

    pub fn hears(&mut self, needle: &[u8], patience: Duration) -> bool {
        let begin = Instant::now();
        let mut bytes = [0; 4096];
        while begin.elapsed() < patience {
            match self.tap.read(&mut bytes) {
                Ok(len) if bytes[..len].windows(needle.len()).any(|window| window == needle) => return true,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        false
    }
}
