//! Evaluates packets with the content of the maps in the kernel, to compare the verdict with the one that follows from
//! the API objects (`netpol explain --live`). Entries may change between two lookups, so a result can be wrong while
//! changes are being written.

use std::net::IpAddr;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, Attempt, Endpoint, Evaluation, FrontendEntry, FrontendKey, IfIndex,
    PORT_PREFIX_EXACT, PortEntry, PortKey, SourceCheck, Tables, evaluate,
};
use netpol_policy::reference::Packet;

use super::Kernel;
use super::maps::{Maps, Raw};

impl Kernel {
    /// Evaluates a packet at an interface as the first packet of a flow: the flow tables are not read. Returns `None`
    /// if the interface is not an endpoint (a pod interface under enforcement).
    pub fn evaluate(&self, ifindex: IfIndex, packet: &Packet) -> Option<Evaluation> {
        let endpoint = self.maps.endpoint(ifindex)?;
        Some(match packet.remote {
            IpAddr::V4(remote) => evaluate(&self.maps, &endpoint, &attempt(packet, remote.octets(), &endpoint)),
            IpAddr::V6(remote) => evaluate(&self.maps, &endpoint, &attempt(packet, remote.octets(), &endpoint)),
        })
    }
}

/// Converts a packet to the type that [`evaluate()`] takes. The source address of the packet is not checked.
fn attempt<A>(packet: &Packet, remote: A, endpoint: &Endpoint) -> Attempt<A> {
    let ingress_ifindex = match (packet.from_node, packet.is_hairpin) {
        (true, _) => 0,
        (false, true) => endpoint.ifindex.0,
        // The packet came from elsewhere. Every index except 0 and the one of the pod's interface has the same effect.
        (false, false) => endpoint.ifindex.0.wrapping_add(1),
    };
    Attempt {
        direction: packet.direction,
        remote,
        protocol: packet.protocol,
        port: packet.port.to_be_bytes(),
        ingress_ifindex,
        source_endpoint: 0,
        source: SourceCheck::NONE,
        post_dnat: packet.post_dnat,
    }
}

macro_rules! tables {
    ($address:ty, $bits:literal, $addresses:ident, $prefixes:ident, $services:ident) => {
        impl Tables<$address> for Maps {
            fn address(&self, address: &$address) -> Option<AddressEntry> {
                // The key of the whole address finds the longest prefix that covers the address.
                let whole = Key::new($bits, *address);
                let exact = self.$addresses.get(address, 0);
                value(exact.or_else(|_| self.$prefixes.get(&whole, 0)))
            }

            fn frontend(&self, key: &FrontendKey<$address>) -> Option<FrontendEntry> {
                value(self.$services.get(&Raw(*key), 0))
            }

            fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
                value(self.allow.get(&Raw(*key), 0))
            }

            fn port(&self, key: &PortKey) -> Option<PortEntry> {
                value(self.ports.get(&Key::new(PORT_PREFIX_EXACT, Raw(*key)), 0))
            }

            fn tunnels(&self, index: u32) -> u64 {
                self.tunnels.get(&index, 0).unwrap_or_default()
            }
        }
    };
}
tables!([u8; 4], 32, addresses_v4, prefixes_v4, services_v4);
tables!([u8; 16], 128, addresses_v6, prefixes_v6, services_v6);

fn value<T>(found: Result<Raw<T>, MapError>) -> Option<T> {
    found.ok().map(|Raw(value)| value)
}
