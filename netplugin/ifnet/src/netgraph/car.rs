//! Two interfaces joined by a node that limits what passes: ng_car(4).

use super::{NAME, NGM_CONNECT, NGM_GENERIC_COOKIE, NGM_MKPEER, NGM_SHUTDOWN, Netgraph, PATH, field, node};
use crate::error::Error;
use crate::sys::{allow, kernel};

// netgraph/ng_car.h
const NGM_CAR_COOKIE: u32 = 1_173_648_034;
const NGM_CAR_GET_CONF: u32 = 4;
const NGM_CAR_SET_CONF: u32 = 5;
const FORWARD: u8 = 1;
const DROP: u8 = 2;
const SINGLE_RATE: u8 = 0;
const SHAPE: u8 = 3;
const CBS_MIN: u64 = 8192;
const CIR_DEFAULT: u64 = 10_240;

/// `struct ng_car_hookconf`: five of the last eight bytes are in use.
const DIRECTION: usize = 40;

/// What may pass in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bits in a second, at most [`Rate::MOST`].
    pub bits: u64,
    /// Bytes that pass at once after a time without any; less than a packet would let none through.
    pub burst: u64,
}

impl Rate {
    /// The highest rate a node takes, in bits in a second (ng_car.c).
    pub const MOST: u64 = 1_000_000_000;

    /// One direction's `struct ng_car_hookconf`.
    fn direction(rate: Option<Self>) -> [u8; DIRECTION] {
        // What is beyond a rate waits, and is dropped when the queue is full; without one all is let through.
        let (burst, bits, red, mode) = match rate {
            Some(Self { bits, burst }) => (burst, bits, DROP, SHAPE),
            None => (CBS_MIN, CIR_DEFAULT, FORWARD, SINGLE_RATE),
        };
        let mut bytes = [0; DIRECTION];
        for (at, word) in [burst, burst, bits, 0].into_iter().enumerate() {
            bytes[at * 8..][..8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes[32..36].copy_from_slice(&[FORWARD, FORWARD, red, mode]);
        bytes
    }
}

/// What may pass between an interface and the one it is joined to; none: everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What the interface receives from outside and the other one sends on.
    pub received: Option<Rate>,
    /// What the interface sends of what the other one receives.
    pub sent: Option<Rate>,
}

impl Limits {
    /// `struct ng_car_bulkconf`: upstream (from hook `lower`), then downstream.
    fn message(self) -> Vec<u8> {
        [Rate::direction(self.received), Rate::direction(self.sent)].concat()
    }
}

impl Netgraph {
    /// Joins two Ethernet interfaces as [`Netgraph::join`] does, within limits. It ends with either of them.
    pub fn join_limited(&self, interface: &str, other: &str, limits: Limits) -> Result<(), Error> {
        let failed = |error| kernel(format!("limit what interface {interface} carries"), error);
        self.hand_over([interface, other])?;
        let device = format!("{}:", node(interface));
        let peer = [field("car", NAME), field("lower", NAME), field("lower", NAME)].concat();
        self.send(&device, NGM_GENERIC_COOKIE, NGM_MKPEER, &peer).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::ENXIO | libc::ENOENT) => Error::Unsupported {
                    what: "limiting what an interface carries".to_owned(),
                    why: "there is no netgraph node `car` (kldload ng_car)".to_owned(),
                },
                _ => failed(error),
            }
        })?;
        let limiter = format!("{device}lower");
        self.send(&limiter, NGM_CAR_COOKIE, NGM_CAR_SET_CONF, &limits.message()).map_err(failed)?;
        let path = format!("{}:", node(other));
        let connect = [field(&path, PATH), field("upper", NAME), field("lower", NAME)].concat();
        self.send(&limiter, NGM_GENERIC_COOKIE, NGM_CONNECT, &connect).map_err(failed)
    }

    /// Whether an interface is joined within these limits.
    pub fn is_limited(&self, interface: &str, limits: Limits) -> Result<bool, Error> {
        let path = format!("{}:lower", node(interface));
        let wanted = limits.message();
        let told = self
            .ask(&path, NGM_CAR_COOKIE, NGM_CAR_GET_CONF, &[], wanted.len())
            .map_err(|error| kernel(format!("ask for the limits of interface {interface}"), error))?;
        Ok(told.as_deref() == Some(&wanted))
    }

    /// Undoes [`Netgraph::join_limited`] for an interface that stays; fine if it is not joined.
    pub fn part_limited(&self, interface: &str) -> Result<(), Error> {
        let path = format!("{}:lower", node(interface));
        allow(self.send(&path, NGM_GENERIC_COOKIE, NGM_SHUTDOWN, &[]), libc::ENOENT)
            .map_err(|error| kernel(format!("lift the limits of interface {interface}"), error))?;
        self.part(interface)
    }
}
