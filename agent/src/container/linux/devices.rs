//! Which devices a container may open or make: in cgroup v2 a small BPF program on its cgroup decides.
//!
//! The program is the spec's list of rules, then the devices that every container has. It looks at the rules
//! from the last to the first and takes the first that fits; what fits none is refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

// From linux/bpf.h: the context of a device program is {access << 16 | type, major, minor}, u32 each.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// Rules of a spec that are taken; more is an error, as programs have a bounded size.
const RULES_MAX: usize = 512;

/// Why a container got no device filter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("linux.resources.devices[{index}].{field}: {reason}")]
    Rule { index: usize, field: &'static str, reason: String },
    #[error("linux.resources.devices: {0} rules, more than {RULES_MAX}")]
    TooMany(usize),
    #[error("cannot filter devices: {what}: {source}")]
    Kernel { what: &'static str, source: io::Error },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `None`: block and character devices.
    kind: Option<u32>,
    /// `None`: any.
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    const fn common(major: u32, minor: Option<u32>, access: u32) -> Self {
        Self { allow: true, kind: Some(CHAR), major: Some(major), minor, access }
    }
}

/// What every container may use whatever its spec says, as OCI runtimes have it.
const COMMON: [Rule; 11] = [
    // Making a node is harmless: opening it is checked again.
    Rule { allow: true, kind: Some(CHAR), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD },
    Rule::common(1, Some(3), ALL), // null
    Rule::common(1, Some(5), ALL), // zero
    Rule::common(1, Some(7), ALL), // full
    Rule::common(1, Some(8), ALL), // random
    Rule::common(1, Some(9), ALL), // urandom
    Rule::common(5, Some(0), ALL), // tty
    Rule::common(5, Some(1), ALL), // console: the container's terminal
    Rule::common(5, Some(2), ALL), // ptmx
    Rule::common(136, None, ALL),  // pts
];

/// Puts the filter for `rules` on the cgroup at `group`.
pub(crate) fn filter(group: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), DeviceError> {
    let program = program(&parse(rules)?);
    let kernel = |what| move |source| DeviceError::Kernel { what, source };
    let program = load(&program).map_err(kernel("load the program"))?;
    let group = File::open(group).map_err(kernel("open the cgroup"))?;
    attach(&group, &program).map_err(kernel("attach the program"))
}

fn parse(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, DeviceError> {
    if rules.len() > RULES_MAX {
        return Err(DeviceError::TooMany(rules.len()));
    }
    let mut parsed = Vec::with_capacity(rules.len() + COMMON.len());
    for (index, rule) in rules.iter().enumerate() {
        let number = |field, value: Option<i64>| match value {
            // Both nothing and a negative number mean any.
            None | Some(..0) => Ok(None),
            Some(value) => u32::try_from(value).map(Some).map_err(|_| DeviceError::Rule {
                index,
                field,
                reason: format!("{value} is no device number"),
            }),
        };
        let mut access = 0;
        // An empty access means all of it.
        for letter in rule.access().as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => {
                    let reason = format!("{letter:?} is not one of r, w, m");
                    return Err(DeviceError::Rule { index, field: "access", reason });
                }
            };
        }
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(BLOCK),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(CHAR),
            LinuxDeviceType::P => {
                let reason = "a pipe is no device to allow or deny".to_owned();
                return Err(DeviceError::Rule { index, field: "type", reason });
            }
        };
        let (major, minor) = (number("major", rule.major())?, number("minor", rule.minor())?);
        parsed.push(Rule { allow: rule.allow(), kind, major, minor, access });
    }
    parsed.extend(COMMON);
    Ok(parsed)
}

/// One instruction as the kernel takes it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u8,
    /// Source register in the high half, destination in the low one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Opcodes: class, operation and source as in linux/bpf_common.h and linux/bpf.h.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const MOVE_CONSTANT: u8 = 0xb7;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate: immediate.cast_signed() }
}

fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD_WORD, KIND, CONTEXT, 0, 0),
        op(MOVE, ACCESS, KIND, 0, 0),
        op(AND, KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Each test jumps over the rest of its rule, whose length is known once it is written.
        let mut tests = Vec::new();
        for (register, wanted) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(wanted) = wanted {
                tests.push(op(JUMP_NOT_EQUAL, register, 0, 0, wanted));
            }
        }
        if rule.access != ALL {
            tests.push(op(MOVE, SCRATCH, ACCESS, 0, 0));
            if rule.allow {
                // Allowed only if it asks for no more than the rule gives.
                tests.push(op(AND, SCRATCH, 0, 0, !rule.access & ALL));
                tests.push(op(JUMP_NOT_EQUAL, SCRATCH, 0, 0, 0));
            } else {
                tests.push(op(AND, SCRATCH, 0, 0, rule.access));
                tests.push(op(JUMP_EQUAL, SCRATCH, 0, 0, 0));
            }
        }
        let verdict = [op(MOVE_CONSTANT, 0, 0, 0, u32::from(rule.allow)), op(EXIT, 0, 0, 0, 0)];
        let length = tests.len() + verdict.len();
        for (at, test) in tests.iter_mut().enumerate() {
            if matches!(test.code, JUMP_NOT_EQUAL | JUMP_EQUAL) {
                test.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
            }
        }
        let everything = tests.is_empty();
        program.extend(tests);
        program.extend(verdict);
        if everything {
            // No later instruction can be reached, which the kernel would refuse.
            return program;
        }
    }
    program.extend([op(MOVE_CONSTANT, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads here.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` reads here.
#[repr(C)]
struct AttachAttr {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attr = LoadAttr {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttr::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attr)?;
    // SAFETY: BPF_PROG_LOAD made this descriptor just now, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(group: &File, program: &OwnedFd) -> io::Result<()> {
    let attr = AttachAttr {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attr).map(drop)
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: the attribute is live and its size is passed; the kernel takes a shorter one than its own as
    // zero-filled, and everything it points to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), std::mem::size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn allows(rules: &str, kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(rules).expect("json");
        let program = program(&parse(&rules).expect("rules"));
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u64; 7];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let constant = u64::from(immediate.cast_unsigned());
            at += 1;
            let jump = match code {
                LOAD_WORD => {
                    registers[to] = u64::from(context[usize::try_from(offset).expect("offset") / 4]);
                    false
                }
                MOVE => {
                    registers[to] = registers[from];
                    false
                }
                MOVE_CONSTANT => {
                    registers[to] = constant;
                    false
                }
                AND => {
                    registers[to] &= constant;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= constant;
                    false
                }
                JUMP_NOT_EQUAL => registers[to] != constant,
                JUMP_EQUAL => registers[to] == constant,
                EXIT => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            };
            if jump {
                at += usize::try_from(offset).expect("forward");
            }
        }
    }

    const DENY_ALL: &str = r#"[{"allow":false,"access":"rwm"}]"#;

    #[test]
    fn a_container_has_the_common_devices_and_no_other() {
        for rules in [DENY_ALL, "[]"] {
            assert!(allows(rules, CHAR, 1, 3, READ | WRITE), "null");
            assert!(allows(rules, CHAR, 136, 7, READ | WRITE), "a terminal");
            assert!(allows(rules, BLOCK, 254, 0, MKNOD), "making any node");
            assert!(!allows(rules, BLOCK, 254, 0, READ), "reading a disk");
            assert!(!allows(rules, CHAR, 1, 11, WRITE), "the kernel's log");
            assert!(!allows(rules, CHAR, 10, 200, READ | WRITE), "tun");
        }
    }

    #[test]
    fn a_rule_gives_what_it_says_and_no_more() {
        let rules = r#"[{"allow":false},{"allow":true,"type":"b","major":254,"minor":0,"access":"r"}]"#;
        assert!(allows(rules, BLOCK, 254, 0, READ));
        assert!(!allows(rules, BLOCK, 254, 0, READ | WRITE));
        assert!(!allows(rules, BLOCK, 254, 1, READ));
        assert!(!allows(rules, CHAR, 254, 0, READ));
    }

    #[test]
    fn later_rules_win() {
        let rules =
            r#"[{"allow":true,"type":"a"},{"allow":false,"type":"c","major":10,"minor":-1,"access":"w"}]"#;
        assert!(allows(rules, CHAR, 10, 5, READ));
        assert!(!allows(rules, CHAR, 10, 5, READ | WRITE));
        assert!(allows(rules, CHAR, 11, 5, WRITE));
        let privileged = r#"[{"allow":false},{"allow":true,"access":"rwm"}]"#;
        assert!(allows(privileged, BLOCK, 8, 1, READ | WRITE | MKNOD));
    }

    #[test]
    fn nothing_follows_a_rule_for_everything() {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(DENY_ALL).expect("json");
        let with = program(&parse(&rules).expect("rules"));
        let without = program(&parse(&[]).expect("rules"));
        assert_eq!(with.len(), without.len(), "the rule takes the place of the last refusal");
    }

    #[test]
    fn wrong_rules_are_named() {
        let text = |rules: &str| {
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(rules).expect("json");
            parse(&rules).expect_err("wrong").to_string()
        };
        assert_eq!(
            text(r#"[{"allow":true,"access":"x"}]"#),
            "linux.resources.devices[0].access: 'x' is not one of r, w, m"
        );
        assert_eq!(
            text(r#"[{"allow":true},{"allow":true,"major":4294967296}]"#),
            "linux.resources.devices[1].major: 4294967296 is no device number"
        );
    }
}
