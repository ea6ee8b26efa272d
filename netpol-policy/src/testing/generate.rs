//! Strategies of `proptest` that generate random objects of a cluster, and random events (changes of objects, of the
//! local node's addresses and of the time).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::cluster_state::Event;
use crate::model::{
    EndpointSlice, HostPort, HostPorts, IpBlock, Labels, Mode, NAMESPACE_NAME_LABEL, NamedPort, Namespace,
    NamespaceModes, Node, Object, ObjectKey, Peer, Peers, Pod, PodKey, Policy, PolicyKey, PortMatch, PortRange, Ports,
    Protocol, Requirement, Rule, Selector, Service, ServiceKey, ServicePort, SliceEndpoint, SliceKey, SlicePort,
    TargetPort, Timestamp,
};

const NAMESPACES: [&str; 3] = ["shop", "mon", "kube-system"];
const LABEL_KEYS: [&str; 2] = ["app", "tier"];
const LABEL_VALUES: [&str; 3] = ["a", "b", "c"];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
const SERVICE_NAMES: [&str; 2] = ["s", "t"];

/// The local node. Only pods of this node have endpoints (interfaces under enforcement).
pub(super) const LOCAL_NODE: &str = "node-1";
/// Addresses of pods, nodes, Services and outside hosts. Pods have only the first six IPv4 addresses and the first four
/// IPv6 addresses.
pub(super) const ADDRESSES: [&str; 14] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.1.1",
    "10.0.1.2",
    "10.1.0.1",
    "192.0.2.1",
    "fd00::1",
    "fd00::2",
    "fd00::1:1",
    "fd00::1:2",
    "2001:db8::1",
    "10.96.0.1",
    "fd96::1",
];
/// Addresses of Services. The first one and the last one can also be addresses of pods.
const SERVICE_ADDRESSES: [&str; 6] = ["10.0.0.3", "192.0.2.1", "2001:db8::1", "10.96.0.1", "fd96::1", "fd00::1:2"];
const BLOCKS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.0.2/32",
    "10.0.1.0/24",
    "::/0",
    "fd00::/16",
    "fd00::/112",
    "fd00::2/128",
    "fd00::1:0/112",
];
/// Ports of rules, pods and packets.
pub(super) const PORTS: [u16; 6] = [53, 79, 80, 81, 8080, 65535];

fn name(names: &'static [&'static str]) -> impl Strategy<Value = Arc<str>> {
    select(names).prop_map(Into::into)
}

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(name(&LABEL_KEYS), name(&LABEL_VALUES), 0..=2).prop_map(|labels| labels.into_iter().collect())
}

fn selector() -> impl Strategy<Value = Selector> {
    let values =
        || subsequence(&LABEL_VALUES[..], 1..=2).prop_map(|values| values.into_iter().map(Into::into).collect());
    let requirement = prop_oneof![
        3 => (name(&LABEL_KEYS), values()).prop_map(|(key, values)| Requirement::In(key, values)),
        1 => (name(&LABEL_KEYS), values()).prop_map(|(key, values)| Requirement::NotIn(key, values)),
        1 => name(&LABEL_KEYS).prop_map(Requirement::Exists),
        1 => name(&LABEL_KEYS).prop_map(Requirement::DoesNotExist),
    ];
    (vec(requirement, 0..=2), prop::bool::weighted(0.03)).prop_map(|(mut requirements, invalid)| {
        requirements.sort_unstable();
        requirements.dedup();
        Selector { requirements, invalid }
    })
}

fn block() -> impl Strategy<Value = IpBlock> {
    let net = |text: &str| -> IpNet { text.parse().expect("invalid block in the list") };
    (select(&BLOCKS[..]), subsequence(&BLOCKS[..], 0..=3)).prop_map(move |(cidr, except)| {
        let cidr: IpNet = net(cidr);
        let is_inside = |except: &IpNet| cidr.contains(except) && except.prefix_len() > cidr.prefix_len();
        let mut except: Vec<_> = except.into_iter().map(net).filter(is_inside).collect();
        except.sort_unstable();
        IpBlock { cidr, except }
    })
}

fn peers() -> impl Strategy<Value = Peers> {
    let pods = (option::of(selector()), selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods });
    let peer = prop_oneof![3 => pods, 2 => block().prop_map(Peer::Block)];
    prop_oneof![1 => Just(Peers::Any), 4 => vec(peer, 0..=3).prop_map(Peers::Of)]
}

fn ports() -> impl Strategy<Value = Ports> {
    let range = (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| PortRange::Range(a.min(b), a.max(b)));
    let port = prop_oneof![
        1 => Just(PortRange::All),
        3 => select(&PORTS[..]).prop_map(|port| PortRange::Range(port, port)),
        1 => range,
        3 => name(&PORT_NAMES).prop_map(PortRange::Named),
    ];
    let item = (select(&Protocol::ALL[..]), port).prop_map(|(protocol, port)| PortMatch { protocol, port });
    prop_oneof![1 => Just(Ports::Any), 4 => vec(item, 0..=3).prop_map(Ports::Of)]
}

/// Generates a policy.
pub fn policy() -> impl Strategy<Value = Policy> {
    let rules =
        || option::weighted(0.7, vec((peers(), ports()).prop_map(|(peers, ports)| Rule { peers, ports }), 0..=3));
    let key = (name(&NAMESPACES), select(&["p", "q", "r"][..]));
    (key, mode(), selector(), rules(), rules()).prop_map(|((namespace, name), mode, pods, ingress, egress)| Policy {
        mode,
        key: PolicyKey::new(namespace, name),
        pods,
        ingress,
        egress,
        diagnostics: Vec::new(),
    })
}

/// Generates a pod, most often on the local node.
pub fn pod() -> impl Strategy<Value = Pod> {
    let port = (name(&PORT_NAMES), select(&Protocol::ALL[..]), select(&PORTS[..]))
        .prop_map(|(name, protocol, port)| NamedPort { name, protocol, port });
    let addresses = (option::weighted(0.8, select(&ADDRESSES[..6])), option::weighted(0.5, select(&ADDRESSES[7..11])));
    let identity = (name(&NAMESPACES), select(&["x", "y", "z"][..]), prop::bool::weighted(0.7), labels());
    let ports = (vec(port, 0..=3), option::weighted(0.2, host_ports()));
    let state = (prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1), 0_i64..3);
    (identity, state, addresses, ports).prop_map(|(identity, state, addresses, (ports, host_ports))| {
        let (namespace, name, is_local, labels) = identity;
        let (host_network, finished, deleting, created) = state;
        Pod {
            key: PodKey::new(namespace, name),
            node: Some(if is_local { LOCAL_NODE } else { "node-2" }.into()),
            host_network,
            finished,
            deleting,
            created,
            labels,
            addresses: addresses.0.into_iter().chain(addresses.1).map(address).collect(),
            ports,
            uid: None,
            workload: None,
            host_ports: host_ports.map(Box::new),
        }
    })
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("invalid address in the list")
}

fn addresses(list: &'static [&'static str], max: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    subsequence(list, 0..=max).prop_map(|subset| {
        let mut addresses: Vec<_> = subset.into_iter().map(address).collect();
        addresses.sort_unstable();
        addresses
    })
}

/// Generates a protocol: TCP most often, so that ports of Services and of `EndpointSlice` objects match.
fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 1 => select(&Protocol::ALL[..])]
}

fn host_ports() -> impl Strategy<Value = HostPorts> {
    let host_address =
        option::weighted(0.3, prop_oneof![2 => select(&ADDRESSES[..]), 1 => select(&["0.0.0.0", "::"][..])]);
    let port = (host_address, protocol(), select(&PORTS[..]), select(&PORTS[..])).prop_map(
        |(host_address, protocol, port, container_port)| HostPort {
            address: host_address.map(address),
            protocol,
            port,
            container_port,
        },
    );
    (addresses(&ADDRESSES, 2), vec(port, 1..=2)).prop_map(|(addresses, ports)| HostPorts { addresses, ports })
}

/// Generates a Service.
pub fn service() -> impl Strategy<Value = Service> {
    let node_port = option::weighted(0.5, select(&PORTS[..]));
    let port =
        (name(&PORT_NAMES), protocol(), select(&PORTS[..]), node_port).prop_map(|(name, protocol, port, node_port)| {
            let target = TargetPort::Number(port);
            ServicePort { name, protocol, port, node_port, target }
        });
    (name(&NAMESPACES[..2]), name(&SERVICE_NAMES), addresses(&SERVICE_ADDRESSES, 3), vec(port, 1..=2)).prop_map(
        |(namespace, name, addresses, ports)| {
            let key = ServiceKey::new(namespace, name);
            Service { key, addresses, ports, selector: Labels::new(), requested_families: None }
        },
    )
}

/// Generates an `EndpointSlice`. Most of them name a Service.
pub fn endpoint_slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (name(&PORT_NAMES), protocol(), select(&PORTS[..])).prop_map(|(name, protocol, port)| SlicePort {
        name,
        protocol,
        port,
    });
    let endpoint = (select(&ADDRESSES[..]), prop::bool::weighted(0.8), prop::bool::weighted(0.3))
        .prop_map(|(text, ready, draining)| SliceEndpoint { address: address(text), ready, draining });
    let service = option::weighted(0.95, name(&SERVICE_NAMES));
    (name(&NAMESPACES[..2]), select(&["1", "2", "3"][..]), service, vec(port, 1..=2), vec(endpoint, 0..=3)).prop_map(
        |(namespace, name, service, ports, endpoints)| {
            let key = SliceKey::new(namespace, name);
            EndpointSlice { key, service, ports, endpoints }
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    (select(&["node-1", "node-2", "node-3"][..]), addresses(&ADDRESSES, 2))
        .prop_map(|(name, addresses)| Node { name: name.into(), addresses })
}

/// Generates the mode of a policy or a namespace.
fn mode() -> impl Strategy<Value = Option<Mode>> {
    prop_oneof![3 => Just(None), 2 => Just(Some(Mode::Shadow)), 1 => Just(Some(Mode::Enforce))]
}

/// Generates the current time (for [`Event::Clock`]), or the end of a suspension.
fn time() -> impl Strategy<Value = Timestamp> {
    (1_i64..6).prop_map(Timestamp)
}

/// Generates the mode and the suspensions in the annotations of a namespace.
fn modes() -> impl Strategy<Value = NamespaceModes> {
    let suspension_end = || option::weighted(0.2, time());
    (mode(), suspension_end(), suspension_end()).prop_map(|(mode, suspended_until, cluster_suspended_until)| {
        NamespaceModes { mode, suspended_until, cluster_suspended_until, reason: None }
    })
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (name(&NAMESPACES), labels())
        .prop_map(|(name, labels)| {
            let labels = labels.with(NAMESPACE_NAME_LABEL.into(), name.clone());
            (name, labels)
        })
        .prop_flat_map(|(name, labels)| {
            modes().prop_map(move |modes| Namespace { name: name.clone(), labels: labels.clone(), modes })
        })
}

/// Generates an object of any kind.
pub fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        4 => pod().prop_map(Object::Pod),
        4 => policy().prop_map(Object::Policy),
        1 => namespace().prop_map(Object::Namespace),
        2 => service().prop_map(Object::Service),
        3 => endpoint_slice().prop_map(Object::Slice),
        1 => node().prop_map(Object::Node),
    ]
}

/// Generates an event.
pub fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => object().prop_map(Event::Apply),
        4 => object().prop_map(|object| Event::Delete(ObjectKey::clone(&object.key()))),
        1 => vec(object(), 0..12).prop_map(Event::Reset),
        1 => addresses(&ADDRESSES, 3).prop_map(Event::LocalAddresses),
        1 => time().prop_map(Event::Clock),
    ]
}
