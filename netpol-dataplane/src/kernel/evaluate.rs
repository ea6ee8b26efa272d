//! Evaluates packets with the content of the maps in the kernel, to compare it with the expected verdict. The endpoint may
//! change between two lookups, so a result can be wrong while changes are being written.

use std::net::IpAddr;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, Attempt, Endpoint, Evaluation, FrontendEntry, FrontendKey, IfIndex,
    PORT_PREFIX_EXACT, PortEntry, PortKey, SourceCheck, Tables, evaluate,
};
use netpol_policy::reference::Packet;

use super::Kernel;
use super::maps::{Maps, Raw};

impl Kernel {
    /// Evaluates the first packet of a flow at an interface, as if no flow were known. Returns `None` if the interface has
    /// no endpoint.
    pub fn evaluate(&self, ifindex: IfIndex, packet: &Packet) -> Option<Evaluation> {
        let endpoint = self.maps.endpoint(ifindex)?;
        Some(match packet.remote {
            IpAddr::V4(remote) => evaluate(&self.maps, &endpoint, &attempt(packet, remote.octets(), &endpoint)),
            IpAddr::V6(remote) => evaluate(&self.maps, &endpoint, &attempt(packet, remote.octets(), &endpoint)),
        })
    }
}

fn attempt<A>(packet: &Packet, remote: A, endpoint: &Endpoint) -> Attempt<A> {
    let ingress_ifindex = match (packet.from_node, packet.is_hairpin) {
        (true, _) => 0,
        (false, true) => endpoint.ifindex.0,
        // Only whether it is another interface is important.
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

type Addresses<A> = HashMap<MapData, A, Raw<AddressEntry>>;
type Prefixes<A> = LpmTrie<MapData, A, Raw<AddressEntry>>;

fn address<A: Pod + Copy>(addresses: &Addresses<A>, prefixes: &Prefixes<A>, address: &A) -> Option<AddressEntry> {
    let bits = u32::try_from(size_of::<A>() * 8).unwrap_or(u32::MAX);
    let exact = addresses.get(address, 0);
    exact.or_else(|_| prefixes.get(&Key::new(bits, *address), 0)).ok().map(|Raw(entry)| entry)
}

impl Maps {
    fn port_entry(&self, key: &PortKey) -> Option<PortEntry> {
        self.ports.get(&Key::new(PORT_PREFIX_EXACT, Raw(*key)), 0).ok().map(|Raw(entry)| entry)
    }

    fn allow_entry(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.allow.get(&Raw(*key), 0).ok().map(|Raw(entry)| entry)
    }

    fn tunnel_word(&self, index: u32) -> u64 {
        self.tunnels.get(&index, 0).unwrap_or_default()
    }
}

impl Tables<[u8; 4]> for Maps {
    fn address(&self, of: &[u8; 4]) -> Option<AddressEntry> {
        address(&self.addresses_v4, &self.prefixes_v4, of)
    }

    fn frontend(&self, key: &FrontendKey<[u8; 4]>) -> Option<FrontendEntry> {
        self.services_v4.get(&Raw(*key), 0).ok().map(|Raw(entry)| entry)
    }

    fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.allow_entry(key)
    }

    fn port(&self, key: &PortKey) -> Option<PortEntry> {
        self.port_entry(key)
    }

    fn tunnels(&self, index: u32) -> u64 {
        self.tunnel_word(index)
    }
}

impl Tables<[u8; 16]> for Maps {
    fn address(&self, of: &[u8; 16]) -> Option<AddressEntry> {
        address(&self.addresses_v6, &self.prefixes_v6, of)
    }

    fn frontend(&self, key: &FrontendKey<[u8; 16]>) -> Option<FrontendEntry> {
        self.services_v6.get(&Raw(*key), 0).ok().map(|Raw(entry)| entry)
    }

    fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.allow_entry(key)
    }

    fn port(&self, key: &PortKey) -> Option<PortEntry> {
        self.port_entry(key)
    }

    fn tunnels(&self, index: u32) -> u64 {
        self.tunnel_word(index)
    }
}
