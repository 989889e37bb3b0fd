//! Any bytes as what a card hears where a DHCP server is awaited, and as the options of a server's answer; the address is
//! nobody's, or somebody's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep_cni::dhcp::{Answer, AnswerKind, Claim, Client, Identity, Outcome, Step};
use skep_cni::mac::Mac;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
const XID: u32 = 8;

fn identity() -> Identity {
    let client_id = Identity::client_id_of("n", "c", "eth0");
    Identity { mac: MAC, client_id, provide: [].into(), request: vec![1, 3] }
}

/// A frame with a message to the client, in which the bytes are the options.
fn frame(options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[2, 1, 6, 0]);
    message[4..8].copy_from_slice(&XID.to_be_bytes());
    message[16..20].copy_from_slice(&[192, 0, 2, 50]);
    message[28..34].copy_from_slice(&MAC.0);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend_from_slice(options);
    let length = |more: usize| u16::try_from(message.len() + more).unwrap_or(u16::MAX).to_be_bytes();
    let head = [0x45, 0, length(28)[0], length(28)[1], 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 255, 255, 255, 255];
    let udp = [0, 67, 0, 68, length(8)[0], length(8)[1], 0, 0];
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 0], &head, &udp, &message].concat()
}

/// Lets a client talk to nobody until it is done.
fn end(client: &mut Client, mut step: Step) -> Outcome {
    for _ in 0..100 {
        match step {
            Step::Done(outcome) => return outcome,
            Step::Send(..) | Step::Wait => step = client.timeout(),
        }
    }
    panic!("it goes on and on");
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Answer::parse(bytes, MAC);
    let claim = Claim::parse(bytes);
    if bytes.len() > 1400 {
        return;
    }
    let Some(mut answer) = Answer::parse(&frame(bytes), MAC) else { return };
    let mut client = Client::acquire(identity(), None, XID - 1);
    let mut step = client.begin();
    for kind in [AnswerKind::Offer, AnswerKind::Ack] {
        answer.kind = kind;
        step = client.hear(&answer, 0);
    }
    if let Some(claim) = claim {
        step = client.hear_claim(claim);
    }
    let theirs = Claim { address: answer.address, mac: Mac([2, 0, 0, 0, 0, 1]) };
    let mut other = client.clone();
    if let Outcome::Bound(lease, offered) = end(&mut client, step) {
        assert_eq!(lease.address.addr(), answer.address);
        assert!(offered.routes.iter().all(|(net, _)| *net == net.trunc()));
        let _ = (Client::release(&lease, 1), Client::extend(&lease, false, 1).locate(bytes));
        // Where somebody has it, it is not had.
        let step = other.hear_claim(theirs);
        assert_eq!(end(&mut other, step), Outcome::Taken(lease.server, theirs));
    }
});
