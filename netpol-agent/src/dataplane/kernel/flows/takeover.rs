//! Connections that are older than a pod's enforcement: what `nf_conntrack` has recorded of them becomes flows.
//!
//! Programs see a connection from the packet on that comes after they are attached, and that may be a reply: evaluated as what it
//! looks like, it would be denied, or allowed in the wrong direction. The flows are written under generation 0, which no endpoint
//! has: the first packet of each is evaluated in the direction of the packet that started it, by the policies of then.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use aya::maps::MapData;
use netpol_common::{Direction, Endpoint, FlowEntry, FlowKey, Generation, flow_state, protocol};

use super::calls;
use super::conntrack::{Connection, Conntrack, Tuple};
use super::table::{Family, SLACK, directory, jiffies};
use crate::dataplane::kernel::load;
use crate::dataplane::kernel::maps::Maps;
use crate::dataplane::kernel::pins::Pins;

/// Endpoints that are attached within this time are taken over together.
const TOGETHER: Duration = Duration::from_millis(20);

/// Writes flows of endpoints that were just attached, or are about to be.
pub(in crate::dataplane::kernel) struct TakeOver {
    conntrack: Conntrack,
    maps: Maps,
    pins: Pins,
    hz: u32,
}

impl TakeOver {
    pub(in crate::dataplane::kernel) fn open(pins: &Pins) -> io::Result<Self> {
        let maps = Maps::open(pins).map_err(io::Error::other)?;
        Ok(Self { conntrack: Conntrack::open()?, maps, pins: pins.clone(), hz: load::frequency() })
    }

    /// Takes over the connections of these endpoints; how many flows that are.
    pub(in crate::dataplane::kernel) fn take_over(&mut self, endpoints: &[Endpoint]) -> io::Result<usize> {
        let by_address: HashMap<IpAddr, &Endpoint> = endpoints
            .iter()
            .flat_map(|endpoint| addresses(endpoint).into_iter().map(move |address| (address, endpoint)))
            .collect();
        let addresses: Vec<IpAddr> = by_address.keys().copied().collect();
        if addresses.is_empty() {
            return Ok(0);
        }
        let connections = self.conntrack.of(&addresses)?;
        let mut tables = HashMap::new();
        // A moment that is still to come would be one long ago, and the flow timed out.
        let now = jiffies(self.hz).wrapping_sub(SLACK * self.hz);
        let mut count = 0;
        for connection in &connections {
            for side in sides(connection, |address| self.maps.is_local_node(address)) {
                let Some(endpoint) = by_address.get(&side.pod) else { continue };
                let entry = FlowEntry {
                    generation: Generation(0),
                    last_used: now,
                    opener: side.opener as u8,
                    state: side.state,
                    remote_endpoint: 0,
                };
                let written = match (side.pod, side.remote) {
                    (IpAddr::V4(pod), IpAddr::V4(remote)) => {
                        let key = side.key(endpoint, pod.octets(), remote.octets());
                        self.write(&mut tables, endpoint.id, &key, &entry)
                    }
                    (IpAddr::V6(pod), IpAddr::V6(remote)) => {
                        let key = side.key(endpoint, pod.octets(), remote.octets());
                        self.write(&mut tables, endpoint.id, &key, &entry)
                    }
                    _ => continue,
                };
                count += usize::from(written);
            }
        }
        Ok(count)
    }

    /// A flow that is known already is newer.
    fn write<K: Family>(
        &self,
        tables: &mut HashMap<(u32, &'static str), Option<MapData>>,
        id: u32,
        key: &K,
        entry: &FlowEntry,
    ) -> bool {
        let table = tables.entry((id, K::PREFIX)).or_insert_with(|| {
            let own = MapData::from_pin(directory(&self.pins).join(format!("{}{id}", K::PREFIX)));
            own.or_else(|_| MapData::from_pin(self.pins.map(K::SHARED))).ok()
        });
        table.as_ref().is_some_and(|map| calls::update(map.fd().as_fd(), key, entry, calls::NOEXIST).is_ok())
    }
}

/// Takes over endpoints on a thread of its own, as the kernel's table may be large.
pub(in crate::dataplane::kernel) fn start(mut work: TakeOver) -> io::Result<Sender<Endpoint>> {
    let (sender, given) = mpsc::channel();
    std::thread::Builder::new().name("take-over".to_owned()).spawn(move || run(&mut work, &given))?;
    Ok(sender)
}

fn run(work: &mut TakeOver, given: &Receiver<Endpoint>) {
    let mut failed = false;
    while let Ok(first) = given.recv() {
        std::thread::sleep(TOGETHER);
        let endpoints: Vec<Endpoint> = std::iter::once(first).chain(given.try_iter()).collect();
        match work.take_over(&endpoints) {
            Ok(flows) => {
                tracing::debug!(endpoints = endpoints.len(), flows, "connections taken over from nf_conntrack");
            }
            Err(error) if !std::mem::replace(&mut failed, true) => {
                tracing::warn!(%error, "cannot read nf_conntrack; replies of connections that are older than their pod's \
                    enforcement may be denied");
            }
            Err(_) => {}
        }
    }
}

fn addresses(endpoint: &Endpoint) -> Vec<IpAddr> {
    let v4 = (endpoint.address_v4 != [0; 4]).then(|| IpAddr::from(endpoint.address_v4));
    let v6 = (endpoint.address_v6 != [0; 16]).then(|| IpAddr::from(endpoint.address_v6));
    v4.into_iter().chain(v6).collect()
}

/// A connection as it is at the veth of one of its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side {
    pod: IpAddr,
    remote: IpAddr,
    pod_port: [u8; 2],
    remote_port: [u8; 2],
    protocol: u8,
    opener: Direction,
    state: u8,
}

impl Side {
    fn key<A>(&self, endpoint: &Endpoint, pod_address: A, remote_address: A) -> FlowKey<A> {
        FlowKey {
            ifindex: endpoint.ifindex,
            pod_address,
            remote_address,
            pod_port: self.pod_port,
            remote_port: self.remote_port,
            protocol: self.protocol,
            zero: [0; 3],
        }
    }
}

/// The pod that started a connection sees it as it was before address translation, the one that it reached as it is after it.
fn sides(connection: &Connection, is_local_node: impl Fn(IpAddr) -> bool) -> [Side; 2] {
    let Connection { original, reply, state } = connection;
    let side = |tuple: &Tuple, opener: Direction, state: u8| {
        // Of ICMP echo, who asks is the remote's port.
        let is_echo = matches!(tuple.protocol, protocol::ICMP | protocol::ICMPV6);
        let remote_asks = [0, u8::from(opener == Direction::Ingress)];
        Side {
            pod: tuple.source,
            remote: tuple.destination,
            pod_port: tuple.source_port,
            remote_port: if is_echo { remote_asks } else { tuple.destination_port },
            protocol: tuple.protocol,
            opener,
            state,
        }
    };
    let origin = if original.source == reply.source {
        flow_state::FROM_ITSELF
    } else if is_local_node(original.source) {
        flow_state::FROM_NODE
    } else {
        0
    };
    [side(original, Direction::Egress, *state), side(reply, Direction::Ingress, *state | origin)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str, ports: [u16; 2]) -> Tuple {
        let [source_port, destination_port] = ports.map(u16::to_be_bytes);
        let address = |text: &str| text.parse().expect("an address");
        Tuple {
            source: address(source),
            destination: address(destination),
            protocol: protocol::TCP,
            source_port,
            destination_port,
        }
    }

    /// Who is the pod, the remote, the remote's port, and the state bits of origin.
    fn shown(side: Side) -> (String, String, u16, u8) {
        (side.pod.to_string(), side.remote.to_string(), u16::from_be_bytes(side.remote_port), side.state)
    }

    #[test]
    fn each_end_sees_a_connection_as_its_packets_are_there() {
        let of = |original: Tuple, reply: Tuple| {
            let connection = Connection { original, reply, state: 0 };
            let is_node = |address: IpAddr| address == IpAddr::from([192, 0, 2, 1]);
            sides(&connection, is_node).map(shown)
        };
        // Through a Service: the client's packets have its address, the server's the client's.
        let [client, server] =
            of(tuple("10.0.0.5", "10.96.0.1", [4000, 443]), tuple("10.0.0.9", "10.0.0.5", [6443, 4000]));
        assert_eq!(client, ("10.0.0.5".into(), "10.96.0.1".into(), 443, 0));
        assert_eq!(server, ("10.0.0.9".into(), "10.0.0.5".into(), 4000, 0));
        // From outside, masqueraded: to the server it is the node's address and port, and not the node's own.
        let [_, server] =
            of(tuple("203.0.113.7", "192.0.2.1", [5000, 30_080]), tuple("10.0.0.9", "192.0.2.1", [80, 61_000]));
        assert_eq!(server, ("10.0.0.9".into(), "192.0.2.1".into(), 61_000, 0));
        // A probe of the node.
        let [_, server] = of(tuple("192.0.2.1", "10.0.0.9", [5000, 80]), tuple("10.0.0.9", "192.0.2.1", [80, 5000]));
        assert_eq!(server.3, flow_state::FROM_NODE);
        // Hairpin traffic.
        let [_, server] = of(tuple("10.0.0.9", "10.96.0.1", [5000, 80]), tuple("10.0.0.9", "192.0.2.1", [80, 61_001]));
        assert_eq!(server.3, flow_state::FROM_ITSELF);
    }
}
