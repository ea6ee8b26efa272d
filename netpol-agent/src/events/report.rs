//! Describes a denied packet.

use std::net::{IpAddr, Ipv6Addr};
use std::time::SystemTime;

use jiff::Timestamp;
use netpol_common::{Direction, FlowEvent, Reason, protocol};
use netpol_policy::cluster_state::{ClusterState, Owner};
use netpol_policy::compile::Engine;
use netpol_policy::explain::{NearestRule, Verdict, explain_packet};
use netpol_policy::model::{Backend, PodKey};
use netpol_policy::reference::Packet;
use serde::Serialize;

/// The JSON line of a denied packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// Time in RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// Always `deny`.
    pub verdict: &'static str,
    /// `ingress`: dropped at the receiver; `egress`: at the sender.
    pub direction: &'static str,
    /// The reason's name.
    pub reason: &'static str,
    /// The pod at which it was dropped, `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The local pod that sent the packet, if the source address is not that pod's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The source.
    pub from: End,
    /// The destination.
    pub to: End,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or a number.
    pub protocol: String,
    /// The destination port, if the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The policies that isolate the pod in this direction.
    pub policies: Vec<PolicyRef>,
    /// If no rule allows it: the rule that is nearest, and what differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearestRule>,
    /// Hints on frequent causes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// Packets of this flow that were dropped without an event since the last line.
    pub suppressed: u32,
    /// Length of the packet in bytes, from its IP header on.
    pub length: u32,
}

/// One end of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// `namespace/pod`, if the address is a pod's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// `local` for an address of the local node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<&'static str>,
    /// Whether the node has replaced the sender's address by its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub masqueraded: bool,
    /// The address, if the packet has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port, if the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The Services with this address and port, as `namespace/name`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub services: Box<[String]>,
    /// With [`Reason::BackendDenied`]: the Services that may have selected this backend.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub via_services: Box<[String]>,
}

/// The name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Describes an event, with names of both ends and the policies. `pod` is the pod of the interface.
pub(super) fn denial(event: &FlowEvent, pod: Option<&PodKey>, engine: &Engine, time: SystemTime) -> Denial {
    let direction = Direction::from_code(event.direction);
    let ports = protocol::has_ports(event.protocol);
    let end = |address: &[u8; 16], port: [u8; 2], own: Option<&PodKey>| {
        let address = address_of(event.family, address);
        let known = address.and_then(|address| engine.pod_at(address));
        let node =
            address.is_some_and(|address| engine.cluster_state().local_addresses.contains(&address)).then_some("local");
        End {
            pod: own.map(ToString::to_string).or_else(|| known.map(|pod| pod.to_string())),
            node: node.filter(|_| own.is_none()),
            masqueraded: false,
            address,
            port: ports.then(|| u16::from_be_bytes(port)),
            services: Box::default(),
            via_services: Box::default(),
        }
    };
    // The source address may be spoofed. The interface shows which pod is the sender.
    let (sender, receiver) = match direction {
        Some(Direction::Egress) => (pod, None),
        _ => (None, pod),
    };
    let policies = engine.rule_set(event.rule_set).unwrap_or_default();
    let mut to = end(&event.destination, event.destination_port, receiver);
    if direction == Some(Direction::Egress) {
        name_services(&mut to, event, engine.cluster_state());
    }
    let mut from = end(&event.source, event.source_port, sender);
    let hint =
        (direction == Some(Direction::Ingress)).then(|| masqueraded(&mut from, &to, event, engine.cluster_state()));
    Denial {
        time: rfc3339(time),
        verdict: "deny",
        direction: direction.map_or("unknown", Direction::name),
        reason: Reason::from_code(event.reason).map_or("unknown", Reason::name),
        pod: pod.map(ToString::to_string),
        sender: None,
        from,
        to,
        protocol: protocol_name(event.protocol),
        port: ports.then(|| u16::from_be_bytes(event.destination_port)),
        policies: policies
            .iter()
            .map(|key| PolicyRef { namespace: key.namespace.to_string(), name: key.name.to_string() })
            .collect(),
        nearest: None,
        hints: hint.flatten().into_iter().collect(),
        suppressed: event.suppressed,
        length: event.length,
    }
}

/// Marks and explains a packet to a pod from an address of this node. Packets that the node itself sends are always
/// allowed, so policy denies only what it forwards from its own address.
fn masqueraded(from: &mut End, to: &End, event: &FlowEvent, cluster_state: &ClusterState) -> Option<String> {
    let by_policy = [Reason::NoRule, Reason::Revoked].iter().any(|reason| *reason as u8 == event.reason);
    let address = from.address.filter(|_| from.node.is_some() && by_policy)?;
    from.masqueraded = true;
    let backend = to.address.zip(to.port).map(|(address, port)| Backend { address, port });
    let services = backend.map(|backend| cluster_state.services_of(backend, event.protocol)).unwrap_or_default();
    let services: Vec<String> = services.iter().map(ToString::to_string).collect();
    let service =
        if services.is_empty() { "its Service".to_owned() } else { format!("Service {}", services.join(" or ")) };
    let length = if address.is_ipv4() { 32 } else { 128 };
    Some(format!(
        "the node masqueraded the packet: {address} is not the sender's address. If it came from outside through a NodePort or a load \
         balancer, set `externalTrafficPolicy: Local` on {service}, which keeps the sender's address, and allow that address; or allow \
         everything that this node masquerades, from any sender, with an ipBlock {address}/{length}"
    ))
}

/// Adds the Services that the packet was sent to. Post-DNAT, the destination is a backend's address.
fn name_services(to: &mut End, event: &FlowEvent, cluster_state: &ClusterState) {
    let (Some(address), Some(port)) = (to.address, to.port) else { return };
    if let Some(frontend) = cluster_state.frontend_at(address, event.protocol, port) {
        let services = cluster_state.owners(&frontend).iter().filter_map(|owner| match owner {
            Owner::Service(key) => Some(key.to_string()),
            Owner::HostPort(_) => None,
        });
        to.services = services.collect();
    } else if event.reason == Reason::BackendDenied as u8 {
        let selecting = cluster_state.services_of(Backend { address, port }, event.protocol);
        to.via_services = selecting.iter().map(ToString::to_string).collect();
    }
}

/// Adds the nearest rule and hints. Evaluates every rule of the pod's policies.
pub(super) fn explain(denial: &mut Denial, event: &FlowEvent, pod: &PodKey, engine: &Engine) {
    let Some(direction) = Direction::from_code(event.direction) else { return };
    let other = match direction {
        Direction::Ingress => &event.source,
        Direction::Egress => &event.destination,
    };
    let Some(remote) = address_of(event.family, other) else { return };
    let packet = Packet {
        pod: pod.clone(),
        direction,
        remote,
        protocol: event.protocol,
        port: denial.port.unwrap_or(0),
        from_node: false,
        is_hairpin: false,
        post_dnat: [Reason::BackendDenied, Reason::NotAllBackendsAllowed]
            .map(|reason| reason as u8)
            .contains(&event.reason),
    };
    let side = explain_packet(engine.cluster_state(), &packet);
    // Policies may have changed since. An explanation of another verdict would be misleading.
    if side.verdict == Verdict::Deny {
        denial.nearest = side.nearest;
        denial.hints.extend(side.hints);
    }
}

fn address_of(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        4 => Some(IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])),
        6 => Some(IpAddr::V6(Ipv6Addr::from(*bytes))),
        _ => None,
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".into(),
        protocol::UDP => "UDP".into(),
        protocol::SCTP => "SCTP".into(),
        protocol::ICMP => "ICMP".into(),
        protocol::ICMPV6 => "ICMPv6".into(),
        other => other.to_string(),
    }
}

/// Formats a time in RFC 3339, in UTC, with milliseconds. A time after the year 9999 is written as 1970.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    format!("{:.3}", Timestamp::try_from(time).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use netpol_policy::cluster_state::Event;
    use netpol_policy::compile::{FirstIds, NodeScope};
    use netpol_policy::manifest;

    use super::*;

    const SHOP: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop}, status: {podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-x1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2]}]
ports: [{port: 5432}]
";

    #[test]
    fn services_are_named_pre_dnat_and_post_dnat() {
        let mut engine = Engine::new(NodeScope::All, FirstIds::default());
        let objects = manifest::parse(SHOP, "f").objects.into_iter().map(|located| located.object).collect();
        engine.apply(Event::Reset(objects));
        let (service, backend) = ([10, 96, 0, 7], [10, 1, 0, 2]);
        for (direction, reason, address, port, services, via_services) in [
            (Direction::Egress, Reason::NoAllowedBackend, service, 80, &["shop/db"][..], &[][..]),
            (Direction::Egress, Reason::Revoked, service, 80, &["shop/db"], &[]),
            (Direction::Egress, Reason::NoRule, service, 81, &[], &[]),
            (Direction::Egress, Reason::BackendDenied, backend, 5432, &[], &["shop/db"]),
            (Direction::Egress, Reason::BackendDenied, backend, 80, &[], &[]),
            (Direction::Egress, Reason::NoRule, backend, 5432, &[], &[]),
            (Direction::Ingress, Reason::NoRule, backend, 5432, &[], &[]),
        ] {
            let mut destination = [0; 16];
            destination[..4].copy_from_slice(&address);
            let event = FlowEvent {
                direction: direction as u8,
                reason: reason as u8,
                family: 4,
                protocol: protocol::TCP,
                destination,
                destination_port: u16::to_be_bytes(port),
                ..FlowEvent::default()
            };
            let to = denial(&event, None, &engine, UNIX_EPOCH).to;
            let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Box<[_]>>();
            assert_eq!((to.services, to.via_services), (texts(services), texts(via_services)), "{reason:?} {port}");
        }
    }

    #[test]
    fn masqueraded_packets_are_marked_and_have_a_hint() {
        let mut engine = Engine::new(NodeScope::All, FirstIds::default());
        let objects = manifest::parse(SHOP, "f").objects.into_iter().map(|located| located.object).collect();
        engine.apply(Event::Reset(objects));
        engine.apply(Event::LocalAddresses(vec![[192, 0, 2, 1].into()]));
        let event = |direction: Direction, reason: Reason, source: [u8; 4]| {
            let (mut from, mut to) = ([0; 16], [0; 16]);
            from[..4].copy_from_slice(&source);
            to[..4].copy_from_slice(&[10, 1, 0, 2]);
            FlowEvent {
                direction: direction as u8,
                reason: reason as u8,
                family: 4,
                protocol: protocol::TCP,
                source: from,
                destination: to,
                destination_port: 5432_u16.to_be_bytes(),
                ..FlowEvent::default()
            }
        };
        let node = [192, 0, 2, 1];
        let pod = PodKey::new("shop", "db-0");
        for (direction, reason, source, masqueraded) in [
            (Direction::Ingress, Reason::NoRule, node, true),
            (Direction::Ingress, Reason::Revoked, node, true),
            (Direction::Ingress, Reason::NoRule, [203, 0, 113, 7], false),
            (Direction::Ingress, Reason::Malformed, node, false),
            (Direction::Egress, Reason::NoRule, node, false),
        ] {
            let denial = denial(&event(direction, reason, source), Some(&pod), &engine, UNIX_EPOCH);
            assert_eq!(denial.from.masqueraded, masqueraded, "{direction:?} {reason:?} {source:?}");
            assert_eq!(denial.hints.len(), usize::from(masqueraded));
        }
        let reported = denial(&event(Direction::Ingress, Reason::NoRule, node), Some(&pod), &engine, UNIX_EPOCH);
        let json = serde_json::to_string(&reported).expect("cannot serialize the line");
        assert!(json.contains(r#""node":"local","masqueraded":true"#), "{json}");
        for part in ["externalTrafficPolicy: Local", "Service shop/db", "ipBlock 192.0.2.1/32"] {
            assert!(reported.hints[0].contains(part), "{}", reported.hints[0]);
        }
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_704_067_199_999, "2023-12-31T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(millis)), text);
        }
    }
}
