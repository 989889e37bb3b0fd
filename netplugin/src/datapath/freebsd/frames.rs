//! Which frames a sandbox may send, as a classic BPF program: what a node of netgraph lets into the bridge.
//!
//! The rules are those that Linux's bridge table has: the sandbox's own Ethernet, ARP, IPv4 and IPv6 addresses, neighbour
//! discovery checked to the last option, no router's and no DHCP server's messages, nothing but IPv4, IPv6 and ARP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mac::Mac;

pub(super) use skep_ifnet::Insn;

/// What net/bpf.h allows a program to have.
#[cfg(test)]
const MAX_INSNS: usize = 512;

// net/bpf.h: class, size and mode together.
const LD_W: u16 = 0x20;
const LD_H: u16 = 0x28;
const LD_B: u16 = 0x30;
const LD_H_IND: u16 = 0x48;
const LDX_MSH: u16 = 0xb1;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const RET: u16 = 0x06;

/// All of the frame.
pub(super) const WHOLE: u32 = u32::MAX;

// Offsets in a frame: Ethernet, then ARP, IPv4 or IPv6 without options.
const ETHER_SOURCE: u32 = 6;
const ETHER_TYPE: u32 = 12;
const NETWORK: u32 = 14;
const ARP_SENDER: u32 = NETWORK + 8;
const ARP_SENDER_IP: u32 = NETWORK + 14;
const ARP_TARGET_IP: u32 = NETWORK + 24;
const IP6_NEXT: u32 = NETWORK + 6;
const IP6_SOURCE: u32 = NETWORK + 8;
const IP6_PAYLOAD: u32 = NETWORK + 40;
const ND_TARGET: u32 = IP6_PAYLOAD + 8;

const UDP: u32 = 17;
const ICMPV6: u32 = 58;
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const DESTINATION_OPTIONS: u32 = 60;
const MLD_QUERY: u32 = 130;
const ROUTER_SOLICITATION: u32 = 133;
const ROUTER_ADVERTISEMENT: u32 = 134;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;
const MLD2_REPORT: u32 = 143;

/// A place in the program that is known by number before it is known by address.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Label(usize);

const ACCEPT: Label = Label(0);
const REFUSE: Label = Label(1);

/// Writes a program; jumps may go to labels that are placed later.
struct Assembler {
    insns: Vec<Insn>,
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn new() -> Self {
        Self { insns: Vec::new(), places: vec![None, None], jumps: Vec::new() }
    }

    fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    fn place(&mut self, label: Label) {
        self.places[label.0] = Some(self.insns.len());
    }

    fn emit(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.insns.push(Insn { code, jt, jf, k });
    }

    fn load(&mut self, code: u16, at: u32) {
        self.emit(code, 0, 0, at);
    }

    fn goto(&mut self, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.emit(JA, 0, 0, 0);
    }

    // A conditional jump reaches 255 instructions; an unconditional one reaches everything.
    fn if_equal(&mut self, value: u32, label: Label) {
        self.emit(JEQ, 0, 1, value);
        self.goto(label);
    }

    fn unless_equal(&mut self, value: u32, label: Label) {
        self.emit(JEQ, 1, 0, value);
        self.goto(label);
    }

    /// Goes on only if six bytes are this address.
    fn need_mac(&mut self, at: u32, mac: Mac, otherwise: Label) {
        let value = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
        self.load(LD_W, at);
        self.unless_equal(value(&mac.0[..4]), otherwise);
        self.load(LD_H, at + 4);
        self.unless_equal(value(&mac.0[4..]), otherwise);
    }

    fn if_ipv4(&mut self, at: u32, addresses: &[Ipv4Addr], label: Label) {
        self.load(LD_W, at);
        for address in addresses {
            self.if_equal(u32::from(*address), label);
        }
    }

    fn if_ipv6(&mut self, at: u32, addresses: &[Ipv6Addr], label: Label) {
        for address in addresses {
            let next = self.label();
            for (word, offset) in address.octets().chunks_exact(4).zip((0..).step_by(4)) {
                let value = word.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
                self.load(LD_W, at + offset);
                self.unless_equal(value, next);
            }
            self.goto(label);
            self.place(next);
        }
    }

    /// Accepts if an option of neighbour discovery has this kind, one unit of length and our address.
    fn accept_option(&mut self, at: u32, kind: u32, mac: Mac) {
        let next = self.label();
        self.load(LD_H, at);
        self.unless_equal(kind << 8 | 1, next);
        self.need_mac(at + 2, mac, next);
        self.goto(ACCEPT);
        self.place(next);
    }

    fn finish(mut self) -> Vec<Insn> {
        self.place(ACCEPT);
        self.emit(RET, 0, 0, WHOLE);
        self.place(REFUSE);
        self.emit(RET, 0, 0, 0);
        for (at, label) in self.jumps {
            let to = self.places[label.0].unwrap_or(at + 1);
            // The machine counts from the next instruction; every jump goes forward.
            self.insns[at].k = u32::try_from(to.saturating_sub(at + 1)).unwrap_or(0);
        }
        self.insns
    }
}

/// The program for a sandbox with these addresses. A load past the frame's end refuses it, which is what BPF does. Where
/// addresses are `leased`, the sandbox asks no server: that is done for it.
pub(super) fn program(mac: Mac, addresses: &[IpAddr], leased: bool) -> Vec<Insn> {
    let v4: Vec<Ipv4Addr> =
        addresses.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }).collect();
    let v6: Vec<Ipv6Addr> =
        addresses.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None }).collect();
    let mut asm = Assembler::new();
    let (arp, ipv4, ipv6) = (asm.label(), asm.label(), asm.label());
    asm.need_mac(ETHER_SOURCE, mac, REFUSE);
    asm.load(LD_H, ETHER_TYPE);
    asm.if_equal(0x0800, ipv4);
    asm.if_equal(0x86dd, ipv6);
    asm.if_equal(0x0806, arp);
    asm.goto(REFUSE);

    asm.place(arp);
    asm.load(LD_W, NETWORK);
    asm.unless_equal(0x0001_0800, REFUSE);
    asm.load(LD_H, NETWORK + 4);
    asm.unless_equal(0x0604, REFUSE);
    asm.need_mac(ARP_SENDER, mac, REFUSE);
    asm.if_ipv4(ARP_SENDER_IP, &v4, ACCEPT);
    // A probe (RFC 5227) has no sender yet and asks for the address it is going to have.
    asm.unless_equal(0, REFUSE);
    asm.if_ipv4(ARP_TARGET_IP, &v4, ACCEPT);
    asm.goto(REFUSE);

    asm.place(ipv4);
    let (own, whole) = (asm.label(), asm.label());
    asm.load(LD_B, NETWORK + 16);
    asm.if_equal(127, REFUSE);
    asm.if_ipv4(NETWORK + 12, &v4, own);
    asm.goto(REFUSE);
    asm.place(own);
    asm.load(LD_B, NETWORK + 9);
    asm.unless_equal(UDP, ACCEPT);
    asm.load(LD_H, NETWORK + 6);
    asm.emit(AND, 0, 0, 0x1fff);
    asm.if_equal(0, whole);
    asm.goto(ACCEPT);
    asm.place(whole);
    // No sandbox is a DHCP server.
    asm.load(LDX_MSH, NETWORK);
    asm.load(LD_H_IND, NETWORK);
    asm.if_equal(67, REFUSE);
    if leased {
        asm.load(LD_H_IND, NETWORK + 2);
        asm.if_equal(67, REFUSE);
    }
    asm.goto(ACCEPT);

    asm.place(ipv6);
    internet6(&mut asm, mac, &v6);
    asm.finish()
}

/// The program for a card that DHCP servers are behind: their answers pass, and ARP, and nothing else.
pub(super) fn dhcp_answers() -> Vec<Insn> {
    let mut asm = Assembler::new();
    asm.load(LD_H, ETHER_TYPE);
    asm.if_equal(0x0806, ACCEPT);
    asm.unless_equal(0x0800, REFUSE);
    asm.load(LD_B, NETWORK + 9);
    asm.unless_equal(UDP, REFUSE);
    asm.load(LD_H, NETWORK + 6);
    asm.emit(AND, 0, 0, 0x3fff);
    asm.unless_equal(0, REFUSE);
    asm.load(LDX_MSH, NETWORK);
    asm.load(LD_H_IND, NETWORK);
    asm.unless_equal(67, REFUSE);
    asm.load(LD_H_IND, NETWORK + 2);
    asm.unless_equal(68, REFUSE);
    asm.goto(ACCEPT);
    asm.finish()
}

fn internet6(asm: &mut Assembler, mac: Mac, own: &[Ipv6Addr]) {
    let (icmp, udp, hop, fragment, by_source) =
        (asm.label(), asm.label(), asm.label(), asm.label(), asm.label());
    asm.load(LD_B, IP6_NEXT);
    asm.if_equal(ICMPV6, icmp);
    asm.if_equal(UDP, udp);
    asm.if_equal(HOP_BY_HOP, hop);
    asm.if_equal(FRAGMENT, fragment);
    // Behind these could be anything; nobody needs them.
    asm.if_equal(ROUTING, REFUSE);
    asm.if_equal(DESTINATION_OPTIONS, REFUSE);
    asm.goto(by_source);

    asm.place(udp);
    // No sandbox is a DHCPv6 server.
    asm.load(LD_H, IP6_PAYLOAD);
    asm.if_equal(547, REFUSE);
    asm.goto(by_source);

    asm.place(hop);
    // Reports of group membership (RFC 3810) and nothing else, perhaps before there is an address.
    let report = asm.label();
    asm.load(LD_H, IP6_PAYLOAD);
    asm.unless_equal(ICMPV6 << 8, REFUSE);
    asm.load(LD_B, IP6_PAYLOAD + 8);
    asm.if_equal(MLD2_REPORT, report);
    asm.if_equal(131, report);
    asm.if_equal(132, report);
    asm.goto(REFUSE);
    asm.place(report);
    asm.if_ipv6(IP6_SOURCE, &[Ipv6Addr::UNSPECIFIED], ACCEPT);
    asm.goto(by_source);

    asm.place(fragment);
    // RFC 6980: neighbour discovery is never fragmented.
    let message = asm.label();
    asm.load(LD_B, IP6_PAYLOAD);
    asm.if_equal(ICMPV6, message);
    asm.if_equal(HOP_BY_HOP, REFUSE);
    asm.if_equal(ROUTING, REFUSE);
    asm.if_equal(DESTINATION_OPTIONS, REFUSE);
    asm.goto(by_source);
    asm.place(message);
    asm.load(LD_H, IP6_PAYLOAD + 2);
    asm.emit(AND, 0, 0, 0xfff8);
    asm.unless_equal(0, by_source);
    asm.load(LD_B, IP6_PAYLOAD + 8);
    for kind in (ROUTER_SOLICITATION..=REDIRECT).chain([MLD_QUERY]) {
        asm.if_equal(kind, REFUSE);
    }
    asm.goto(by_source);

    asm.place(icmp);
    let discovery = asm.label();
    asm.load(LD_B, IP6_PAYLOAD);
    for kind in [ROUTER_ADVERTISEMENT, REDIRECT, MLD_QUERY] {
        asm.if_equal(kind, REFUSE);
    }
    for kind in [ROUTER_SOLICITATION, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT] {
        asm.if_equal(kind, discovery);
    }
    asm.place(by_source);
    asm.if_ipv6(IP6_SOURCE, own, ACCEPT);
    asm.goto(REFUSE);

    asm.place(discovery);
    neighbour_discovery(asm, mac, own);
}

/// Payload lengths leave room for one option of eight bytes, or none: with more, the one that counts could hide behind
/// another.
fn neighbour_discovery(asm: &mut Assembler, mac: Mac, own: &[Ipv6Addr]) {
    let (nowhere, known, ours, tentative) = (asm.label(), asm.label(), asm.label(), asm.label());
    asm.if_ipv6(IP6_SOURCE, &[Ipv6Addr::UNSPECIFIED], nowhere);
    asm.if_ipv6(IP6_SOURCE, own, known);
    asm.goto(REFUSE);

    asm.place(nowhere);
    // Duplicate address detection: for an own address, with at most a nonce.
    let solicitation = asm.label();
    asm.load(LD_B, IP6_PAYLOAD);
    asm.if_equal(NEIGHBOUR_SOLICITATION, solicitation);
    asm.unless_equal(ROUTER_SOLICITATION, REFUSE);
    asm.load(LD_H, NETWORK + 4);
    asm.if_equal(8, ACCEPT);
    asm.goto(REFUSE);
    asm.place(solicitation);
    asm.if_ipv6(ND_TARGET, own, tentative);
    asm.goto(REFUSE);
    asm.place(tentative);
    asm.load(LD_H, NETWORK + 4);
    asm.if_equal(24, ACCEPT);
    asm.unless_equal(32, REFUSE);
    asm.load(LD_H, IP6_PAYLOAD + 24);
    asm.if_equal(14 << 8 | 1, ACCEPT);
    asm.goto(REFUSE);

    asm.place(known);
    let (asks, answers) = (asm.label(), asm.label());
    asm.load(LD_B, IP6_PAYLOAD);
    asm.if_equal(NEIGHBOUR_SOLICITATION, asks);
    asm.if_equal(NEIGHBOUR_ADVERTISEMENT, answers);
    asm.load(LD_H, NETWORK + 4);
    asm.if_equal(8, ACCEPT);
    asm.unless_equal(16, REFUSE);
    asm.accept_option(IP6_PAYLOAD + 8, 1, mac);
    asm.goto(REFUSE);
    asm.place(asks);
    asm.load(LD_H, NETWORK + 4);
    asm.if_equal(24, ACCEPT);
    asm.unless_equal(32, REFUSE);
    asm.accept_option(IP6_PAYLOAD + 24, 1, mac);
    asm.goto(REFUSE);
    asm.place(answers);
    asm.if_ipv6(ND_TARGET, own, ours);
    asm.goto(REFUSE);
    asm.place(ours);
    asm.load(LD_H, NETWORK + 4);
    asm.if_equal(24, ACCEPT);
    asm.unless_equal(32, REFUSE);
    asm.accept_option(IP6_PAYLOAD + 24, 2, mac);
    asm.goto(REFUSE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn addresses() -> Vec<IpAddr> {
        vec!["10.1.0.2".parse().unwrap(), "fd01::2".parse().unwrap(), MAC.link_local().into()]
    }

    /// What bpf_filter(9) does.
    fn passes(program: &[Insn], frame: &[u8]) -> bool {
        let word = |at: usize, len: usize| -> Option<u32> {
            let bytes = frame.get(at..at.checked_add(len)?)?;
            Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
        };
        let (mut pc, mut a, mut x) = (0, 0_u32, 0_u32);
        loop {
            let Insn { code, jt, jf, k } = program[pc];
            pc += 1;
            let loaded = match code {
                LD_W => word(k as usize, 4),
                LD_H => word(k as usize, 2),
                LD_B => word(k as usize, 1),
                LD_H_IND => word(x as usize + k as usize, 2),
                LDX_MSH => {
                    let Some(byte) = word(k as usize, 1) else { return false };
                    x = (byte & 15) * 4;
                    Some(a)
                }
                AND => Some(a & k),
                JA => {
                    pc += k as usize;
                    Some(a)
                }
                JEQ => {
                    pc += usize::from(if a == k { jt } else { jf });
                    Some(a)
                }
                RET => return k > 0,
                other => panic!("instruction {other:#x}"),
            };
            let Some(value) = loaded else { return false };
            a = value;
        }
    }

    fn ether(source: Mac, kind: u16, rest: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &source.0, &kind.to_be_bytes(), rest].concat()
    }

    fn arp(sender: Mac, ip: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        ether(MAC, 0x0806, &[&[0, 1, 8, 0, 6, 4, 0, 1][..], &sender.0, &ip, &[0; 6], &target].concat())
    }

    fn ipv4(source: [u8; 4], to: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let [high, low] = fragment.to_be_bytes();
        let head = [0x45, 0, 0, 40, 0, 0, high, low, 64, protocol, 0, 0];
        ether(MAC, 0x0800, &[&head[..], &source, &to, payload].concat())
    }

    fn ipv6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [0x60, 0, 0, 0, length[0], length[1], next, 255];
        ether(MAC, 0x86dd, &[&head[..], &source.octets(), &[0xff; 16], payload].concat())
    }

    fn nd(kind: u8, target: &str, option: &[u8]) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), option].concat()
    }

    #[test]
    fn own_frames_pass_and_false_ones_do_not() {
        let program = program(MAC, &addresses(), false);
        let (own, other, out) = ([10, 1, 0, 2], [10, 1, 0, 3], [192, 0, 2, 1]);
        let own_option = |kind: u8| [&[kind, 1][..], &MAC.0].concat();
        let false_option = [1, 1, 2, 0, 0, 0, 0, 7];
        let mut nonce = [7; 8];
        nonce[..2].copy_from_slice(&[14, 1]);
        let link_local = MAC.link_local().to_string();
        let hop = |kind: u8| [&[58, 0, 5, 2, 0, 0, 1, 0, kind, 0][..], &[0; 18]].concat();
        let fragment =
            |next: u8, at: u8, kind: u8| [&[next, 0, 0, at, 0, 0, 0, 1, kind][..], &[0; 7]].concat();
        for (n, (want, frame)) in [
            (true, arp(MAC, own, other)),
            (true, arp(MAC, [0; 4], own)),
            (false, arp(MAC, other, own)),
            (false, arp(MAC, [0; 4], other)),
            (false, arp(Mac([2, 0, 0, 0, 0, 8]), own, other)),
            (true, ipv4(own, out, 6, 0, &[0; 20])),
            (false, ipv4(other, out, 6, 0, &[0; 20])),
            (false, ipv4(own, [127, 0, 0, 1], 6, 0, &[0; 20])),
            (true, ipv4(own, out, 17, 0, &[0, 68, 0, 67, 0, 8, 0, 0])),
            (false, ipv4(own, out, 17, 0, &[0, 67, 0, 68, 0, 8, 0, 0])),
            (true, ipv4(own, out, 17, 185, &[0, 67, 0, 68, 0, 8, 0, 0])),
            (true, ipv6("fd01::2", 6, &[0; 20])),
            (true, ipv6(&link_local, 6, &[0; 20])),
            (false, ipv6("fd01::3", 6, &[0; 20])),
            (false, ipv6("fd01::2", 17, &[2, 0x23, 2, 0x22, 0, 8, 0, 0])),
            (true, ipv6("fd01::2", 17, &[2, 0x22, 2, 0x23, 0, 8, 0, 0])),
            (true, ipv6("fd01::2", 58, &[128, 0, 0, 0, 0, 0, 0, 0])),
            (false, ipv6("fd01::2", 58, &[134, 0, 0, 0, 0, 0, 0, 0])),
            (false, ipv6("fd01::2", 58, &nd(137, "fd01::2", &[]))),
            (true, ipv6("::", 58, &nd(135, "fd01::2", &[]))),
            (true, ipv6("::", 58, &nd(135, "fd01::2", &nonce))),
            (false, ipv6("::", 58, &nd(135, "fd01::3", &[]))),
            (true, ipv6("::", 58, &[133, 0, 0, 0, 0, 0, 0, 0])),
            (true, ipv6("fd01::2", 58, &nd(135, "fd01::1", &own_option(1)))),
            (false, ipv6("fd01::2", 58, &nd(135, "fd01::1", &false_option))),
            (false, ipv6("fd01::2", 58, &nd(135, "fd01::1", &[&own_option(1)[..], &false_option].concat()))),
            (true, ipv6("fd01::2", 58, &nd(136, "fd01::2", &own_option(2)))),
            (false, ipv6("fd01::2", 58, &nd(136, "fd01::3", &own_option(2)))),
            (false, ipv6("fd01::2", 58, &nd(136, "fd01::2", &[2, 1, 2, 0, 0, 0, 0, 7]))),
            (false, ipv6("fd01::3", 58, &nd(136, "fd01::2", &own_option(2)))),
            (true, ipv6("::", 0, &hop(143))),
            (true, ipv6("fd01::2", 0, &hop(131))),
            (false, ipv6("fd01::2", 0, &hop(134))),
            (false, ipv6("fd01::2", 60, &hop(143))),
            (false, ipv6("fd01::2", 44, &fragment(58, 0, 134))),
            (true, ipv6("fd01::2", 44, &fragment(58, 0, 128))),
            (true, ipv6("fd01::2", 44, &fragment(58, 8, 134))),
            (false, ipv6("fd01::2", 44, &fragment(60, 0, 0))),
            (false, ether(MAC, 0x8100, &[0; 60])),
            (false, ether(Mac([2, 0, 0, 0, 0, 8]), 0x0800, &ipv4(own, out, 6, 0, &[0; 20])[14..])),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(passes(&program, &frame), want, "frame {n}: {frame:02x?}");
            // A frame that was cut short never passes where the whole one did not.
            for len in 0..frame.len() {
                assert!(want || !passes(&program, &frame[..len]), "frame {n} cut to {len}");
            }
        }
    }

    #[test]
    fn where_addresses_are_leased_the_host_asks_and_nobody_else() {
        let (own, out) = ([10, 1, 0, 2], [192, 0, 2, 1]);
        let udp = |from: u16, to: u16| [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 4]].concat();
        for (leased, to, want) in [(true, 67, false), (true, 68, true), (false, 67, true)] {
            let program = program(MAC, &addresses(), leased);
            assert_eq!(passes(&program, &ipv4(own, out, 17, 0, &udp(68, to))), want, "{leased} {to}");
            // The rest of a packet in pieces is not a question's beginning.
            assert!(passes(&program, &ipv4(own, out, 17, 1, &udp(68, to))));
            assert_eq!(passes(&program, &ipv4(own, out, 17, 0x2000, &udp(68, to))), want);
        }
        let nothing = program(MAC, &[], true);
        assert!(!passes(&nothing, &ipv4([0; 4], [255; 4], 17, 0, &udp(68, 67))));
        assert!(!passes(&nothing, &arp(MAC, [0; 4], own)));
    }

    #[test]
    fn of_what_a_card_hears_the_answers_of_servers_are_taken() {
        let program = dhcp_answers();
        let udp = |from: u16, to: u16| [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 4]].concat();
        let (server, all) = ([192, 0, 2, 1], [255; 4]);
        assert!(passes(&program, &ipv4(server, all, 17, 0, &udp(67, 68))));
        assert!(passes(&program, &ether(MAC, 0x0806, &[0; 28])), "who has an address");
        for other in [
            ipv4(server, all, 17, 0, &udp(68, 67)),
            ipv4(server, all, 17, 0, &udp(53, 68)),
            ipv4(server, all, 6, 0, &udp(67, 68)),
            ipv4(server, all, 17, 1, &udp(67, 68)),
            ipv4(server, all, 17, 0x2000, &udp(67, 68)),
            ether(MAC, 0x86dd, &[0; 60]),
        ] {
            assert!(!passes(&program, &other), "{other:02x?}");
        }
    }

    #[test]
    fn who_has_no_address_of_a_family_does_not_speak_it() {
        let program = program(MAC, &["10.1.0.2".parse().unwrap()], false);
        assert!(!passes(&program, &ipv6(&MAC.link_local().to_string(), 6, &[0; 20])));
        assert!(passes(&program, &ipv4([10, 1, 0, 2], [192, 0, 2, 1], 6, 0, &[0; 20])));
    }

    proptest! {
        #[test]
        fn programs_are_sound_for_any_addresses(mac: [u8; 6], v4 in proptest::collection::vec(any::<[u8; 4]>(), 0..4), v6 in proptest::collection::vec(any::<[u8; 16]>(), 0..4), leased: bool, frame in proptest::collection::vec(any::<u8>(), 0..200)) {
            let addresses: Vec<IpAddr> = v4.into_iter().map(IpAddr::from).chain(v6.into_iter().map(IpAddr::from)).collect();
            let program = program(Mac(mac), &addresses, leased);
            prop_assert!(program.len() <= MAX_INSNS, "{}", program.len());
            for (at, insn) in program.iter().enumerate() {
                let furthest = match insn.code {
                    JA => at + 1 + insn.k as usize,
                    JEQ => at + 1 + usize::from(insn.jt.max(insn.jf)),
                    _ => at,
                };
                prop_assert!(furthest < program.len());
            }
            if passes(&program, &frame) {
                prop_assert_eq!(&frame[6..12], &mac[..]);
            }
        }
    }
}
