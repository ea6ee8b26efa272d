//! Takes over connections that started before programs were attached to a pod's interface: converts `nf_conntrack`
//! entries into flows.
//!
//! The first packet that a program processes after it is attached may be a reply. Without a flow, the reply would be
//! evaluated as the first packet of a flow in its own direction. The flows are written with version 0, which no
//! endpoint has. So the next packet of each flow is evaluated in the initiator's direction, by the current policies.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use aya::maps::MapData;
use netpol_common::{Direction, Endpoint, EndpointVersion, FlowEntry, FlowKey, flow_state, protocol};
use netpol_node::Netlink;

use super::calls;
use super::conntrack::{Connection, Conntrack, Tuple};
use super::table::{Family, SLACK, directory, jiffies};
use crate::kernel::load;
use crate::kernel::pins::Pins;

/// Endpoints that are attached within this time are processed together.
const BATCH_TIME: Duration = Duration::from_millis(20);

/// For this time after all connections were read, they are also used for further endpoints.
const MAX_AGE: Duration = Duration::from_millis(100);

/// Connections, and what is needed to convert them into flows.
struct Connections {
    read_at: Instant,
    list: Vec<Connection>,
    /// The addresses of the local node. They are read from the kernel after the list, and not from the maps: the maps
    /// may not have a new address yet that the node already uses.
    local_addresses: HashSet<IpAddr>,
}

/// Writes flows for the connections of endpoints.
pub(in crate::kernel) struct TakeOver {
    conntrack: Conntrack,
    netlink: Netlink,
    /// All connections, kept for the next calls of `take_over_from_list`. `None` if there is no list.
    connections: Option<Connections>,
    pins: Pins,
    hz: u32,
}

impl TakeOver {
    pub(in crate::kernel) fn open(pins: &Pins) -> io::Result<Self> {
        Ok(Self {
            conntrack: Conntrack::open()?,
            netlink: Netlink::open().map_err(io::Error::other)?,
            connections: None,
            pins: pins.clone(),
            hz: load::kernel_hz(),
        })
    }

    /// Takes over the connections of these endpoints. Returns the number of flows written.
    pub(in crate::kernel) fn take_over(&mut self, endpoints: &[Endpoint]) -> io::Result<usize> {
        let addresses: Vec<IpAddr> = endpoints.iter().flat_map(addresses).collect();
        if addresses.is_empty() {
            return Ok(0);
        }
        let list = self.conntrack.connections_of(&addresses)?;
        if list.is_empty() {
            return Ok(0);
        }
        let connections = self.with_local_addresses(list);
        Ok(self.write_flows(endpoints, &connections))
    }

    /// Takes over the connections of an endpoint before its programs are attached. Reads all connections, and uses this
    /// list for the next endpoints, too, because reading the kernel's table takes 10 ms or more.
    pub(in crate::kernel) fn take_over_from_list(&mut self, endpoint: &Endpoint) -> io::Result<usize> {
        let recent = self.connections.take().filter(|connections| connections.read_at.elapsed() < MAX_AGE);
        let connections = if let Some(connections) = recent {
            connections
        } else {
            let all = self.conntrack.all()?;
            self.with_local_addresses(all)
        };
        let count = self.write_flows(std::slice::from_ref(endpoint), &connections);
        self.connections = Some(connections);
        Ok(count)
    }

    /// Frees the list of connections.
    pub(in crate::kernel) fn free_connection_list(&mut self) {
        self.connections = None;
    }

    /// Adds the addresses of the local node. If they cannot be read, connections from the node need a rule, as those
    /// from other hosts do.
    fn with_local_addresses(&mut self, list: Vec<Connection>) -> Connections {
        let read_at = Instant::now();
        let by_interface = self.netlink.addresses(None).unwrap_or_else(|error| {
            tracing::warn!(%error, "connections of this node that are older than a pod's enforcement may be denied");
            BTreeMap::new()
        });
        let local_addresses = by_interface.into_values().flatten().map(|address| address.addr()).collect();
        Connections { read_at, list, local_addresses }
    }

    fn write_flows(&self, endpoints: &[Endpoint], connections: &Connections) -> usize {
        let by_address: HashMap<IpAddr, &Endpoint> = endpoints
            .iter()
            .flat_map(|endpoint| addresses(endpoint).into_iter().map(move |address| (address, endpoint)))
            .collect();
        let mut tables = HashMap::new();
        // Subtracts the maximum difference between this clock and the kernel's. Programs would read a time in the
        // future as a time long ago, and would ignore the flow.
        let now = jiffies(self.hz).wrapping_sub(SLACK * self.hz);
        let mut count = 0;
        for connection in &connections.list {
            for side in sides(connection, |address| connections.local_addresses.contains(&address)) {
                let Some(endpoint) = by_address.get(&side.address) else { continue };
                let entry = FlowEntry {
                    version: EndpointVersion(0),
                    last_used: now,
                    started: now,
                    initiator: side.initiator as u8,
                    state: side.state,
                    ..FlowEntry::default()
                };
                let written = match (side.address, side.remote) {
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
        count
    }

    /// Writes a flow. An existing flow is newer, and is not replaced.
    fn write<K: Family>(
        &self,
        tables: &mut HashMap<(u32, &'static str), Option<MapData>>,
        id: u32,
        key: &K,
        entry: &FlowEntry,
    ) -> bool {
        let table = tables.entry((id, K::PREFIX)).or_insert_with(|| {
            let own_table = MapData::from_pin(directory(&self.pins).join(format!("{}{id}", K::PREFIX)));
            own_table.or_else(|_| MapData::from_pin(self.pins.map(K::SHARED))).ok()
        });
        table.as_ref().is_some_and(|map| calls::update(map.fd().as_fd(), key, entry, calls::NOEXIST).is_ok())
    }
}

/// Starts a thread that takes over the connections of the endpoints that it receives. It is a thread, because reading
/// the kernel's table may take long.
pub(in crate::kernel) fn start(mut work: TakeOver) -> io::Result<Sender<Endpoint>> {
    let (sender, endpoints_received) = mpsc::channel();
    std::thread::Builder::new().name("take-over".to_owned()).spawn(move || run(&mut work, &endpoints_received))?;
    Ok(sender)
}

fn run(work: &mut TakeOver, endpoints_received: &Receiver<Endpoint>) {
    let mut failed = false;
    while let Ok(first) = endpoints_received.recv() {
        std::thread::sleep(BATCH_TIME);
        let endpoints: Vec<Endpoint> = std::iter::once(first).chain(endpoints_received.try_iter()).collect();
        match work.take_over(&endpoints) {
            Ok(flows) => {
                tracing::debug!(endpoints = endpoints.len(), flows, "connections taken over from nf_conntrack");
            }
            Err(error) if !std::mem::replace(&mut failed, true) => {
                tracing::warn!(%error, "cannot read nf_conntrack; replies of connections older than the pod's \
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

/// One end of a connection: the addresses and ports of packets at this end's veth. `address` is the address of this
/// end. Not every end is a pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side {
    address: IpAddr,
    remote: IpAddr,
    port: [u8; 2],
    remote_port: [u8; 2],
    protocol: u8,
    /// The direction, at this end's veth, of the packet that initiated the connection.
    initiator: Direction,
    state: u8,
}

impl Side {
    fn key<A>(&self, endpoint: &Endpoint, pod_address: A, remote_address: A) -> FlowKey<A> {
        FlowKey {
            ifindex: endpoint.ifindex,
            pod_address,
            remote_address,
            pod_port: self.port,
            remote_port: self.remote_port,
            protocol: self.protocol,
            zero: [0; 3],
        }
    }
}

/// Returns both ends: at the initiating pod's veth, packets are pre-DNAT; at the other pod's veth, post-DNAT.
fn sides(connection: &Connection, is_local_node: impl Fn(IpAddr) -> bool) -> [Side; 2] {
    let Connection { original, reply, state } = connection;
    let side = |tuple: &Tuple, initiator: Direction, state: u8| {
        // For ICMP echo, the remote port is 1 if the remote side sends the requests.
        let is_echo = matches!(tuple.protocol, protocol::ICMP | protocol::ICMPV6);
        let remote_requests = [0, u8::from(initiator == Direction::Ingress)];
        Side {
            address: tuple.source,
            remote: tuple.destination,
            port: tuple.source_port,
            remote_port: if is_echo { remote_requests } else { tuple.destination_port },
            protocol: tuple.protocol,
            initiator,
            state,
        }
    };
    let origin = if original.source == reply.source {
        flow_state::HAIRPIN
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
        let address = |text: &str| text.parse().expect("invalid address");
        Tuple {
            source: address(source),
            destination: address(destination),
            protocol: protocol::TCP,
            source_port,
            destination_port,
        }
    }

    /// Returns pod, remote address, remote port and the state bits of the origin.
    fn fields_of(side: Side) -> (String, String, u16, u8) {
        (side.address.to_string(), side.remote.to_string(), u16::from_be_bytes(side.remote_port), side.state)
    }

    #[test]
    fn each_end_has_the_addresses_and_ports_of_its_own_packets() {
        let fields_of_sides = |original: Tuple, reply: Tuple| {
            let connection = Connection { original, reply, state: 0 };
            let is_node = |address: IpAddr| address == IpAddr::from([192, 0, 2, 1]);
            sides(&connection, is_node).map(fields_of)
        };
        // Through a Service: the client sends to the Service's address, the server sends to the client's address.
        let [client, server] =
            fields_of_sides(tuple("10.0.0.5", "10.96.0.1", [4000, 443]), tuple("10.0.0.9", "10.0.0.5", [6443, 4000]));
        assert_eq!(client, ("10.0.0.5".into(), "10.96.0.1".into(), 443, 0));
        assert_eq!(server, ("10.0.0.9".into(), "10.0.0.5".into(), 4000, 0));
        // From outside, masqueraded: the server sends to the node's address and port, but the node did not initiate the
        // connection.
        let [_, server] = fields_of_sides(
            tuple("203.0.113.7", "192.0.2.1", [5000, 30_080]),
            tuple("10.0.0.9", "192.0.2.1", [80, 61_000]),
        );
        assert_eq!(server, ("10.0.0.9".into(), "192.0.2.1".into(), 61_000, 0));
        // A probe from the node.
        let [_, server] =
            fields_of_sides(tuple("192.0.2.1", "10.0.0.9", [5000, 80]), tuple("10.0.0.9", "192.0.2.1", [80, 5000]));
        assert_eq!(server.3, flow_state::FROM_NODE);
        // Hairpin traffic.
        let [_, server] =
            fields_of_sides(tuple("10.0.0.9", "10.96.0.1", [5000, 80]), tuple("10.0.0.9", "192.0.2.1", [80, 61_001]));
        assert_eq!(server.3, flow_state::HAIRPIN);
    }
}
