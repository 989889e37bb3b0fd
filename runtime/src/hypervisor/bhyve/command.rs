//! bhyve's command line: pure.

use std::ffi::OsString;
use std::path::Path;

use crate::hypervisor::{SpecError, VmSpec};

/// Device slots between the host bridge (0) and the LPC bridge (31).
const SLOTS: usize = 30;

/// All arguments after the program's name. `dir` is where the console ports' sockets go.
pub(super) fn arguments(spec: &VmSpec, dir: &Path) -> Result<Vec<OsString>, SpecError> {
    let mut devices = Vec::new();
    if !spec.console_ports.is_empty() {
        let mut device = vec!["virtio-console".to_owned()];
        for port in &spec.console_ports {
            let path = dir.join(&port.socket);
            device.push(format!("{}={}", port.name, plain("console_ports.socket", &path)?));
        }
        devices.push(device.join(","));
    }
    for share in &spec.shares {
        let readonly = if share.readonly { ",ro" } else { "" };
        devices.push(format!("virtio-9p,{}={}{readonly}", share.tag, plain("shares.path", &share.path)?));
    }
    for disk in &spec.disks {
        let readonly = if disk.readonly { ",ro" } else { "" };
        let path = plain("disks.path", &disk.path)?;
        devices.push(format!("virtio-blk,{path},serial={}{readonly}", disk.serial));
    }
    for nic in &spec.nics {
        // The type is said since bhyve would tell it from the name, which need not begin with "tap": if_tuntap makes
        // the device known by the interface's new name (sys/net/if_tuntap.c, tunrename).
        devices.push(format!("virtio-net,{},type=tap,mac={}", nic.tap, nic.mac));
    }
    if spec.rng {
        devices.push("virtio-rnd".to_owned());
    }
    if devices.len() > SLOTS {
        return Err(SpecError::Unsupported { hypervisor: "bhyve", what: "room for more than 30 devices" });
    }
    let mut args: Vec<OsString> = Vec::new();
    // An idle vCPU sleeps; unknown model-specific registers read as zero; the clock is UTC.
    args.extend(["-H", "-w", "-u"].map(Into::into));
    let mut option = |name: &str, value: String| args.extend([name.into(), value.into()]);
    option("-c", spec.vcpus.to_string());
    option("-m", format!("{}M", spec.memory.mib()));
    option("-s", "0,hostbridge".into());
    for (slot, device) in (1..).zip(devices) {
        option("-s", format!("{slot},{device}"));
    }
    option("-s", "31,lpc".into());
    option("-l", "com1,stdio".into());
    args.push(spec.name.as_str().into());
    Ok(args)
}

/// A path that bhyve reads as it is: `,` would end it and `%` begin a variable (usr.sbin/bhyve/config.c).
fn plain<'a>(field: &'static str, path: &'a Path) -> Result<&'a str, SpecError> {
    path.to_str()
        .filter(|text| !text.contains([',', '%', '\n']))
        .ok_or_else(|| SpecError::Path { field, value: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::spec::tests::example;
    use crate::hypervisor::{ConsolePort, Disk, MacAddress, Nic, Share};

    fn line(spec: &VmSpec) -> String {
        let args = arguments(spec, Path::new("/run/skep/sb/x")).unwrap();
        args.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_vm_has_the_devices_of_its_spec_and_no_others() {
        assert_eq!(
            line(&example()),
            "-H -w -u -c 2 -m 256M -s 0,hostbridge -s 1,virtio-console,skep.agent=/run/skep/sb/x/agent.sock \
             -s 2,virtio-9p,skep=/run/skep/sb/x/share -s 3,virtio-rnd -s 31,lpc -l com1,stdio skep-0123456789abcdef"
        );
    }

    #[test]
    fn every_kind_of_device_is_there_when_asked_for() {
        let spec = VmSpec {
            shares: vec![Share { tag: "ro".into(), path: "/a b".into(), readonly: true }],
            disks: vec![
                Disk { path: "/x.img".into(), readonly: true, serial: "root".into() },
                Disk { path: "/y.img".into(), readonly: false, serial: "data".into() },
            ],
            nics: vec![Nic { tap: "tap0".into(), mac: MacAddress([2, 0, 0, 0, 0, 1]) }],
            console_ports: ["a", "b"].map(|n| ConsolePort { name: n.into(), socket: n.into() }).into(),
            rng: false,
            ..example()
        };
        let line = line(&spec);
        for part in [
            "-s 1,virtio-console,a=/run/skep/sb/x/a,b=/run/skep/sb/x/b ",
            "-s 2,virtio-9p,ro=/a b,ro ",
            "-s 3,virtio-blk,/x.img,serial=root,ro ",
            "-s 4,virtio-blk,/y.img,serial=data ",
            "-s 5,virtio-net,tap0,type=tap,mac=02:00:00:00:00:01 ",
        ] {
            assert!(line.contains(part), "{part}\nis not in\n{line}");
        }
        assert!(!line.contains("rnd"));
    }

    #[test]
    fn paths_that_bhyve_would_misread_are_refused() {
        for path in ["/a,b", "/a%(name)", "/a\nb"] {
            let shares = vec![Share { tag: "t".into(), path: path.into(), readonly: false }];
            let error = arguments(&VmSpec { shares, ..example() }, Path::new("/x")).unwrap_err();
            assert!(matches!(error, SpecError::Path { field: "shares.path", .. }), "{error}");
        }
        assert!(arguments(&example(), Path::new("/a,b")).is_err());
    }

    #[test]
    fn more_devices_than_slots_are_refused() {
        let nic = Nic { tap: "tap0".into(), mac: MacAddress([2, 0, 0, 0, 0, 1]) };
        let spec = VmSpec { nics: vec![nic; SLOTS - 3], ..example() };
        assert!(line(&spec).contains("-s 30,virtio-rnd "));
        let spec =
            VmSpec { disks: vec![Disk { path: "/x".into(), readonly: true, serial: "x".into() }], ..spec };
        assert!(matches!(arguments(&spec, Path::new("/x")), Err(SpecError::Unsupported { .. })));
    }
}
