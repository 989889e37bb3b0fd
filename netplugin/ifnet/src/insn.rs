/// An instruction of a BPF program: `struct bpf_insn` of net/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// What it does.
    pub code: u16,
    /// How many instructions are left out if its condition is true.
    pub jt: u8,
    /// How many if it is false.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}
