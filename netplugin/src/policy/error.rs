//! What may be wrong with what somebody wrote.

/// Why a policy is not usable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Neither a range nor an address.
    #[error("`{0}` is neither an address range, an address nor `any`")]
    Cidr(String),
    /// Neither a port nor a range of ports.
    #[error("`{0}` is neither a port nor a range of ports")]
    Ports(String),
    /// `ports` makes sense for protocols that have them only.
    #[error("`ports` needs `protocol` tcp, udp or sctp")]
    PortsWithoutProtocol,
    /// Both a range and a group.
    #[error("a rule has either `cidr` or `group`, not both")]
    TwoPeers,
    /// Not a name.
    #[error("`{0}` is not a group's name (1 to 63 letters, digits, `-`, `_`, `.`)")]
    Group(String),
    /// An annotation that cannot be read.
    #[error("annotation {name}: {why}")]
    Annotation {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The network does not let pods bring a policy.
    #[error("annotation {0} is there, but the network's policy does not set `annotations` to true")]
    AnnotationsOff(String),
}
