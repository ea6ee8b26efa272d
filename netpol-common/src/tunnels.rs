//! The BPF map `TUNNELS`: a bitmap of the UDP ports and IP protocols at which nodes decapsulate packets (tunnel
//! endpoints). The local node and the other nodes have separate parts of the bitmap.

use crate::protocol;

/// The number of 64-bit words for UDP ports in each part of the bitmap: one bit for each port.
const PORT_WORDS: u32 = 1024;
/// The number of 64-bit words for IP protocols in each part of the bitmap: one bit for each protocol.
const PROTOCOL_WORDS: u32 = 4;

/// The number of words of `TUNNELS`, an array of `u64` with a part for each [`TunnelScope`].
pub const TUNNEL_WORDS: u32 = 2 * (PORT_WORDS + PROTOCOL_WORDS);

/// The nodes to which a part of `TUNNELS` applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelScope {
    /// The node of the pod: addresses with [`address_flags::LOCAL_NODE`](crate::address_flags::LOCAL_NODE).
    LocalNode,
    /// All other nodes: addresses with [`address_flags::NODE`](crate::address_flags::NODE).
    OtherNodes,
}

/// The position of a bit in `TUNNELS`: a word, and a bit of this word. In the map, the bit is set if its UDP port or IP
/// protocol is a tunnel endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelBit {
    /// The index of the word in `TUNNELS`.
    pub index: u32,
    /// A mask with this bit of the word.
    pub bit: u64,
}

impl TunnelBit {
    /// Returns the position for a UDP port.
    #[inline(always)]
    pub const fn of_port(scope: TunnelScope, port: u16) -> Self {
        Self { index: Self::first_word(scope) + port as u32 / 64, bit: 1 << (port % 64) }
    }

    /// Returns the position for an IP protocol.
    #[inline(always)]
    pub const fn of_protocol(scope: TunnelScope, protocol: u8) -> Self {
        Self { index: Self::first_word(scope) + PORT_WORDS + protocol as u32 / 64, bit: 1 << (protocol % 64) }
    }

    /// Returns the position for a packet. For UDP, this is the position for the destination port (`port`, in network
    /// byte order); for other protocols, it is the position for the protocol. `None` for protocols that no tunnel uses.
    #[inline(always)]
    pub const fn of_packet(scope: TunnelScope, protocol: u8, port: [u8; 2]) -> Option<Self> {
        match protocol {
            protocol::UDP => Some(Self::of_port(scope, u16::from_be_bytes(port))),
            protocol::TCP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6 => None,
            _ => Some(Self::of_protocol(scope, protocol)),
        }
    }

    /// Returns the index of the first word of the scope's part.
    #[inline(always)]
    const fn first_word(scope: TunnelScope) -> u32 {
        match scope {
            TunnelScope::LocalNode => 0,
            TunnelScope::OtherNodes => PORT_WORDS + PROTOCOL_WORDS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_and_protocol_has_its_own_bit() {
        use TunnelScope::{LocalNode, OtherNodes};
        let positions = [
            TunnelBit::of_port(LocalNode, 0),
            TunnelBit::of_port(LocalNode, u16::MAX),
            TunnelBit::of_protocol(LocalNode, 0),
            TunnelBit::of_protocol(LocalNode, u8::MAX),
            TunnelBit::of_port(OtherNodes, 0),
            TunnelBit::of_protocol(OtherNodes, u8::MAX),
        ];
        assert_eq!(positions.map(|position| position.index), [0, 1023, 1024, 1027, 1028, TUNNEL_WORDS - 1]);
        assert_eq!(positions[1].bit, 1 << 63);
        assert_eq!(
            TunnelBit::of_packet(LocalNode, protocol::UDP, [0x21, 0x18]),
            Some(TunnelBit::of_port(LocalNode, 8472))
        );
        assert_eq!(TunnelBit::of_packet(LocalNode, protocol::TCP, [0x21, 0x18]), None);
    }
}
