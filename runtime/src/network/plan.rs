//! Which interfaces are taken over, and by which device of the VM: pure.

use skep_protocol::api;

use super::NetworkError;
use crate::hypervisor::MacAddress;

/// How taps begin.
const TAP: &str = if cfg!(target_os = "freebsd") { "skt" } else { "skep" };

/// An interface that was found in a network namespace.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    /// Its number.
    pub(super) index: u32,
    /// Whether it carries Ethernet frames.
    pub(super) ethernet: bool,
    /// Whether it is the loopback interface.
    pub(super) loopback: bool,
    /// Whether it is up.
    pub(super) up: bool,
    /// What the guest is to have; `device` is still empty.
    pub(super) interface: api::Interface,
}

/// A network device of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Device {
    number: usize,
    hash: u32,
    mac: MacAddress,
}

impl Device {
    /// `count` devices of the VM `name`. By their addresses the guest knows them until it is told better ones.
    pub(super) fn of(name: &str, count: usize) -> Vec<Self> {
        let hash = name
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let [a, b, c, d] = hash.to_be_bytes();
        let device = |number: usize| Self {
            number,
            hash,
            // Locally administered.
            mac: MacAddress([2, a, b, c, d, u8::try_from(number).unwrap_or(u8::MAX)]),
        };
        (0..count).map(device).collect()
    }

    /// The tap that is its other end: in the sandbox's namespace, or where there are none, with a name that no other
    /// sandbox's has.
    pub(super) fn tap(self) -> String {
        if cfg!(target_os = "freebsd") {
            format!("{TAP}{:08x}n{}", self.hash, self.number)
        } else {
            format!("{TAP}{}", self.number)
        }
    }

    /// Its place among the VM's devices, from 0.
    pub(super) fn number(self) -> usize {
        self.number
    }

    /// By which the guest knows it.
    pub(super) fn mac(self) -> MacAddress {
        self.mac
    }
}

/// Whether it is a tap of some VM.
pub(super) fn is_tap(found: &Found) -> bool {
    found.interface.name.strip_prefix(TAP).is_some_and(|rest| {
        let number = if cfg!(target_os = "freebsd") { rest.get(9..) } else { Some(rest) };
        number.is_some_and(|number| number.parse::<usize>().is_ok())
    })
}

/// Whether a sandbox takes it over. The loopback interface is not moved, and a kernel makes tunnels in each new
/// namespace that are down and have no address.
fn wanted(found: &Found) -> bool {
    !found.loopback && !is_tap(found) && (found.up || !found.interface.addresses.is_empty())
}

/// The interfaces that a sandbox takes over.
pub(super) fn choose(found: Vec<Found>) -> Result<Vec<Found>, NetworkError> {
    let chosen: Vec<Found> = found.into_iter().filter(wanted).collect();
    match chosen.iter().find(|found| !found.ethernet) {
        Some(other) => Err(NetworkError::Kind { name: other.interface.name.clone() }),
        None => Ok(chosen),
    }
}

/// Gives each interface a device, in their order.
pub(super) fn assign(found: Vec<Found>, devices: &[Device]) -> Result<Vec<(Found, Device)>, NetworkError> {
    if found.len() > devices.len() {
        let names = found.into_iter().map(|found| found.interface.name).collect();
        return Err(NetworkError::Room { names, room: devices.len() });
    }
    let with_device = found.into_iter().zip(devices).map(|(mut found, device)| {
        found.interface.device = device.mac.0.to_vec();
        (found, *device)
    });
    Ok(with_device.collect())
}

/// What the guest calls the interfaces it was told of, and by which devices it has them.
pub(super) fn named(interfaces: &[api::Interface], devices: &[Device]) -> Vec<(String, Device)> {
    let device =
        |interface: &api::Interface| devices.iter().copied().find(|device| interface.device == device.mac.0);
    interfaces.iter().filter_map(|one| Some((one.name.clone(), device(one)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, up: bool, addresses: usize) -> Found {
        let mut interface = api::Interface { name: name.into(), ..api::Interface::new() };
        interface.addresses = vec![api::InterfaceAddress::new(); addresses];
        Found { index: 2, ethernet: true, loopback: name == "lo", up, interface }
    }

    fn names(found: &[Found]) -> Vec<&str> {
        found.iter().map(|found| found.interface.name.as_str()).collect()
    }

    #[test]
    fn what_somebody_made_is_taken_and_what_the_kernel_makes_is_not() {
        let all = vec![
            found("lo", true, 2),
            found("gretap0", false, 0),
            found("eth0", true, 2),
            found(&Device::of("x", 1)[0].tap(), true, 0),
            found("skepnet", true, 0),
            found("later", false, 1),
        ];
        assert_eq!(names(&choose(all).unwrap()), ["eth0", "skepnet", "later"]);
    }

    #[test]
    fn an_interface_without_frames_is_refused() {
        let tunnel = Found { ethernet: false, ..found("wg0", true, 1) };
        assert!(
            choose(vec![tunnel]).unwrap_err().to_string().starts_with("interface wg0 is not an Ethernet")
        );
        // One that nobody uses does no harm.
        let idle = Found { ethernet: false, ..found("tunl0", false, 0) };
        assert_eq!(choose(vec![idle]).unwrap(), []);
    }

    #[test]
    fn each_interface_has_a_device_of_its_own() {
        let devices = Device::of("skep-0123456789abcdef", 2);
        assert_ne!(devices[0].mac, devices[1].mac);
        assert_ne!(devices[0].mac, Device::of("skep-0123456789abcdee", 1)[0].mac);
        assert_eq!(devices[0].mac.0[0], 2);
        let plan = assign(vec![found("b", true, 0), found("a", true, 0)], &devices).unwrap();
        assert_eq!(plan[0].0.interface.device, devices[0].mac.0);
        assert_eq!(plan[1].1.tap(), devices[1].tap());
        let interfaces: Vec<_> = plan.iter().map(|(found, _)| found.interface.clone()).collect();
        assert_eq!(
            named(&interfaces, &devices),
            [("b".to_owned(), devices[0]), ("a".to_owned(), devices[1])]
        );
        assert!(is_tap(&found(&devices[1].tap(), true, 0)));
        let many = ["a", "b", "c"].map(|name| found(name, true, 0)).to_vec();
        let error = assign(many, &devices).unwrap_err().to_string();
        assert!(
            error.contains("3 interfaces (a, b, c)") && error.contains("org.skep.interfaces = \"3\""),
            "{error}"
        );
    }
}
