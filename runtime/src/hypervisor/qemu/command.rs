//! QEMU's command line: pure.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use super::accel::Accel;
use crate::hypervisor::{SpecError, VmSpec};

/// What the command line refers to beyond the spec.
#[derive(Debug)]
pub(super) struct Wiring<'a> {
    /// How instructions are run.
    pub(super) accel: Accel,
    /// Whether system calls can be taken away from QEMU.
    pub(super) seccomp: bool,
    /// Descriptor of the listening socket of the monitor.
    pub(super) qmp: RawFd,
    /// Descriptors of the listening sockets of the console ports, in their order.
    pub(super) ports: &'a [RawFd],
    /// Descriptors of the taps of the network interfaces, in their order.
    pub(super) taps: &'a [RawFd],
    /// Socket of the vhost-user backend, if the spec has a vsock.
    pub(super) vhost_vsock: Option<&'a Path>,
}

/// Seccomp: no obsolete calls, no change of user, no other program, no scheduling.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// All that QEMU emulates but for the promise that `rep movsb` and `rep stosb` are fast (ERMS, FSRM). Guests that believe
/// it, Linux and the C libraries among them, copy and clear memory by these, and TCG runs them byte by byte: a copy
/// costs up to a hundred times as much as by the loops they use otherwise.
const TCG_CPU: &str = "max,erms=off,fsrm=off";

/// Each virtio device is a legacy PCI one, as bhyve's are.
const LEGACY: &str = "disable-legacy=off,disable-modern=on";

/// All arguments after the program's name.
pub(super) fn arguments(spec: &VmSpec, wiring: &Wiring<'_>) -> Result<Vec<OsString>, SpecError> {
    let mut args = Arguments(Vec::new());
    args.option("-name", &spec.name);
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        args.flag(flag);
    }
    args.option("-display", "none");
    if wiring.seccomp {
        args.option("-sandbox", SANDBOX);
    }
    // Nothing that the guest has no driver for.
    let memory_backend = if spec.vsock.is_some() { ",memory-backend=memory" } else { "" };
    args.option("-machine", &format!("q35,usb=off,vmport=off,smbus=off,sata=off,i8042=off{memory_backend}"));
    match wiring.accel {
        Accel::Kvm => {
            args.option("-accel", "kvm");
            args.option("-cpu", "host");
        }
        Accel::Tcg => {
            args.option("-accel", "tcg,thread=multi");
            args.option("-cpu", TCG_CPU);
        }
    }
    args.option("-m", &format!("{}M", spec.memory.mib()));
    args.option("-smp", &spec.vcpus.to_string());
    args.option("-kernel", text("kernel", &spec.kernel)?);
    if let Some(initramfs) = &spec.initramfs {
        args.option("-initrd", text("initramfs", initramfs)?);
    }
    args.option("-append", &spec.cmdline);
    args.option("-chardev", "stdio,id=console,signal=off");
    args.option("-serial", "chardev:console");
    args.option("-chardev", &format!("socket,id=qmp,fd={},server=on,wait=off", wiring.qmp));
    args.option("-mon", "chardev=qmp,mode=control");
    if !spec.console_ports.is_empty() {
        // Number 0 is for consoles. QEMU makes two queues for each port that there could be, and asks all of them whether there
        // is anything whenever a byte has come.
        let most = spec.console_ports.len() + 1;
        args.option("-device", &format!("virtio-serial-pci,id=ports,max_ports={most},{LEGACY}"));
    }
    for (n, (port, fd)) in spec.console_ports.iter().zip(wiring.ports).enumerate() {
        args.option("-chardev", &format!("socket,id=port{n},fd={fd},server=on,wait=off"));
        args.option("-device", &format!("virtserialport,bus=ports.0,chardev=port{n},name={}", port.name));
    }
    for (n, share) in spec.shares.iter().enumerate() {
        let path = escaped(text("shares.path", &share.path)?);
        let readonly = if share.readonly { ",readonly=on" } else { "" };
        args.option(
            "-fsdev",
            &format!("local,id=share{n},path={path},security_model=passthrough,multidevs=remap{readonly}"),
        );
        args.option("-device", &format!("virtio-9p-pci,fsdev=share{n},mount_tag={},{LEGACY}", share.tag));
    }
    for (n, disk) in spec.disks.iter().enumerate() {
        let path = escaped(text("disks.path", &disk.path)?);
        let readonly = if disk.readonly { "on" } else { "off" };
        args.option(
            "-blockdev",
            &format!(
                "driver=raw,node-name=disk{n},read-only={readonly},file.driver=file,file.filename={path}"
            ),
        );
        args.option("-device", &format!("virtio-blk-pci,drive=disk{n},serial={},{LEGACY}", disk.serial));
    }
    for (n, nic) in spec.nics.iter().enumerate() {
        let tap = match wiring.taps.get(n) {
            Some(fd) => format!("fd={fd}"),
            None => format!("ifname={},script=no,downscript=no", nic.tap),
        };
        args.option("-netdev", &format!("tap,id=nic{n},{tap}"));
        args.option("-device", &format!("virtio-net-pci,netdev=nic{n},mac={},romfile=,{LEGACY}", nic.mac));
    }
    if spec.rng {
        args.option("-object", "rng-random,id=rng,filename=/dev/urandom");
        args.option("-device", &format!("virtio-rng-pci,rng=rng,{LEGACY}"));
    }
    if let (Some(_), Some(socket)) = (spec.vsock, wiring.vhost_vsock) {
        // The backend reads and writes guest memory itself. Its device has no legacy form.
        let memory = format!("memory-backend-memfd,id=memory,size={}M,share=on", spec.memory.mib());
        args.option("-object", &memory);
        args.option("-chardev", &format!("socket,id=vsock,path={}", escaped(text("vsock", socket)?)));
        args.option("-device", "vhost-user-vsock-pci,chardev=vsock");
    }
    Ok(args.0)
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: &str) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

fn text<'a>(field: &'static str, path: &'a Path) -> Result<&'a str, SpecError> {
    path.to_str().ok_or_else(|| SpecError::Path { field, value: path.to_owned() })
}

/// In a list of options a comma is written twice.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::spec::tests::example;
    use crate::hypervisor::{ConsolePort, Disk, MacAddress, Nic, Share, Vsock};

    fn line(spec: &VmSpec, accel: Accel) -> String {
        let vhost_vsock = spec.vsock.map(|_| Path::new("/run/v.sock"));
        let wiring = Wiring { accel, seccomp: true, qmp: 7, ports: &[8, 9], taps: &[10], vhost_vsock };
        let args = arguments(spec, &wiring).unwrap();
        args.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_vm_has_the_devices_of_its_spec_and_no_others() {
        let line = line(&example(), Accel::Tcg);
        for part in [
            "-nodefaults -no-user-config -no-reboot",
            "-sandbox on,",
            "-accel tcg,thread=multi -cpu max,erms=off,fsrm=off -m 256M -smp 2",
            "-kernel /guest/vmlinux -initrd /guest/initramfs.cpio -append console=ttyS0 quiet ",
            "fd=7,server=on,wait=off -mon chardev=qmp,mode=control",
            "-chardev socket,id=port0,fd=8,server=on,wait=off -device virtserialport,bus=ports.0,chardev=port0,name=skep.agent",
            "path=/run/skep/sb/x/share,security_model=passthrough,multidevs=remap -device virtio-9p-pci,fsdev=share0,mount_tag=skep,",
        ] {
            assert!(line.contains(part), "{part}\nis not in\n{line}");
        }
        for none in ["virtio-net", "virtio-blk", "vsock", "readonly", "kvm", "fd=9"] {
            assert!(!line.contains(none), "{none}");
        }
        // Serial, 9p and rng, each as bhyve has it.
        assert_eq!(line.matches("-pci,").count(), 3);
        assert_eq!(line.matches("disable-modern=on").count(), 3);
    }

    #[test]
    fn every_kind_of_device_is_there_when_asked_for() {
        let spec = VmSpec {
            shares: vec![Share { tag: "ro".into(), path: "/a,b".into(), readonly: true }],
            disks: vec![Disk { path: "/x,id=y.img".into(), readonly: true, serial: "root".into() }],
            nics: vec![Nic { tap: "tap0".into(), mac: MacAddress([2, 0, 0, 0, 0, 1]) }],
            console_ports: ["a", "b"].map(|n| ConsolePort { name: n.into(), socket: n.into() }).into(),
            vsock: Some(Vsock { cid: 3, port: 1024 }),
            rng: false,
            ..example()
        };
        let line = line(&spec, Accel::Kvm);
        for part in [
            "-accel kvm -cpu host",
            "path=/a,,b,security_model=passthrough,multidevs=remap,readonly=on",
            "read-only=on,file.driver=file,file.filename=/x,,id=y.img",
            "tap,id=nic0,fd=10",
            "mac=02:00:00:00:00:01",
            "fd=9",
            "memory-backend=memory",
            "size=256M,share=on",
            "vhost-user-vsock-pci,chardev=vsock",
        ] {
            assert!(line.contains(part), "{part}\nis not in\n{line}");
        }
        assert!(!line.contains("rng"));
    }

    #[test]
    fn a_path_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStrExt as _;

        let spec = VmSpec { kernel: std::ffi::OsStr::from_bytes(b"/\xff").into(), ..example() };
        let wiring =
            Wiring { accel: Accel::Tcg, seccomp: false, qmp: 7, ports: &[8], taps: &[], vhost_vsock: None };
        assert!(matches!(arguments(&spec, &wiring), Err(SpecError::Path { field: "kernel", .. })));
    }
}
