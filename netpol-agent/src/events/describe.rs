//! Describes an event of the eBPF programs with the names of pods, workloads, Services, nodes and policies.

use std::net::{IpAddr, Ipv6Addr};
use std::time::SystemTime;

use jiff::Timestamp;
use netpol_api::{FlowDirection, FlowEnd, FlowRecord, FlowSide, FlowVerdict, RECORD_SCHEMA, RecordHeader, Workload};
use netpol_common::{Direction, FlowEvent, Reason, event_flags, protocol};
use netpol_policy::cluster_state::{ClusterState, FrontendOwner};
use netpol_policy::compile::Engine;
use netpol_policy::model::{Backend, Labels, Pod, PodKey};

use super::bounds::{bound_record, listed};

/// Where the names in records come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    /// Has the cluster state, and the policies of each rule set.
    pub(super) engine: &'a Engine,
    /// The name of the local node.
    pub(super) node: &'a str,
}

/// A record, and the labels of its pods, which are not part of the record. The API adds them on request.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) record: FlowRecord,
    /// The labels of the source and the destination, if they are pods.
    pub(super) labels: [Option<Labels>; 2],
}

/// Returns the verdict of an event.
pub(super) fn verdict(event: &FlowEvent) -> FlowVerdict {
    let allows = Reason::from_code(event.reason).is_some_and(Reason::allows);
    match event.flags & (event_flags::SHADOW | event_flags::OBSERVED) {
        0 if !allows => FlowVerdict::Denied,
        // `SHADOW`: policies in shadow mode would deny the flow. `OBSERVED`: the agent runs with `--observe` and
        // enforces nothing, so the packet has passed, even if its reason denies it.
        flags if flags & event_flags::SHADOW != 0 || !allows => FlowVerdict::Shadow,
        _ => FlowVerdict::Allowed,
    }
}

/// Returns the direction of an event.
pub(super) fn direction(event: &FlowEvent) -> Direction {
    Direction::from_code(event.direction).unwrap_or(Direction::Ingress)
}

/// Converts a direction to the type that records contain.
pub(crate) const fn flow_direction(direction: Direction) -> FlowDirection {
    match direction {
        Direction::Ingress => FlowDirection::Ingress,
        Direction::Egress => FlowDirection::Egress,
    }
}

/// Describes an event. `pod` is the pod of the event's interface.
pub(super) fn describe(event: &FlowEvent, pod: Option<&PodKey>, names: Names<'_>, time: SystemTime) -> Described {
    let cluster_state = names.engine.cluster_state();
    let direction = direction(event);
    let ports = protocol::has_ports(event.protocol);
    // The direction decides whether the pod of the interface is the source or the destination. The pod's address is not
    // compared with those in the packet, because a source address may be spoofed.
    let (sender, receiver) = match direction {
        Direction::Egress => (pod, None),
        Direction::Ingress => (None, pod),
    };
    let end = |address: &[u8; 16], port: [u8; 2], interface_pod: Option<&PodKey>| {
        let address = address_of(event.family, address);
        let pod = match interface_pod {
            Some(key) => cluster_state.pods.get(key),
            None => address.and_then(|address| cluster_state.pod_with_address(address)),
        };
        let end = describe_end(interface_pod, pod, address, ports.then(|| u16::from_be_bytes(port)), names);
        (end, pod.map(|pod| pod.labels.clone()))
    };
    let (mut from, labels_from) = end(&event.source, event.source_port, sender);
    let (mut to, labels_to) = end(&event.destination, event.destination_port, receiver);
    if direction == Direction::Egress {
        name_services(&mut to, event, cluster_state);
    }
    let hint = (direction == Direction::Ingress).then(|| mark_masqueraded(&mut from, &to, event, names)).flatten();
    let mut record = FlowRecord {
        header: header(time, names.node),
        verdict: verdict(event),
        direction: flow_direction(direction),
        reason: reason_name(event).to_owned(),
        from,
        to,
        protocol: protocol_name(event.protocol),
        port: ports.then(|| u16::from_be_bytes(event.destination_port)),
        egress: None,
        ingress: None,
        unexplained: None,
        revoked_by: None,
        sender: None,
        hints: hint.into_iter().collect(),
        suppressed: event.suppressed,
        length: event.length,
    };
    bound_record(&mut record);
    if pod.is_some() {
        *record.own_side_mut() = Some(side_of(event, names.engine));
    }
    Described { record, labels: [labels_from, labels_to] }
}

/// Returns the evaluation at the event's pod, as far as the event itself contains it. An explanation adds the rules
/// later.
fn side_of(event: &FlowEvent, engine: &Engine) -> FlowSide {
    let (policies, policy_count) = listed(engine.rule_set(event.rule_set).unwrap_or_default());
    FlowSide {
        verdict: verdict(event),
        reason: reason_name(event).to_owned(),
        policies,
        policy_count,
        rule: None,
        nearest: None,
        fix: None,
        fix_omitted: false,
    }
}

/// Returns the header of a record.
pub(super) fn header(time: SystemTime, node: &str) -> RecordHeader {
    RecordHeader { schema: RECORD_SCHEMA.to_owned(), time: rfc3339(time), node: node.to_owned() }
}

/// Describes one end of a flow: its source or its destination. `interface_pod` is the pod of the interface, if this end
/// is that pod. `pod` is the object of the pod at this end, if the cluster state still has this object.
fn describe_end(
    interface_pod: Option<&PodKey>,
    pod: Option<&Pod>,
    address: Option<IpAddr>,
    port: Option<u16>,
    names: Names<'_>,
) -> FlowEnd {
    let key = interface_pod.or(pod.map(|pod| &pod.key));
    let node_at = |address: IpAddr| {
        let cluster_state = names.engine.cluster_state();
        let local = cluster_state.is_local_address(address).then_some(names.node);
        local.or_else(|| cluster_state.node_with_address(address).map(|node| &*node.name))
    };
    let node = match (key, pod) {
        (Some(_), _) => pod.and_then(|pod| pod.node.as_deref()),
        (None, _) => address.and_then(node_at),
    };
    FlowEnd {
        namespace: key.map(|key| key.namespace.to_string()),
        pod: key.map(|key| key.name.to_string()),
        workload: pod.and_then(workload),
        node: node.map(ToOwned::to_owned),
        address,
        port,
        ..FlowEnd::default()
    }
}

/// Returns the object that controls a pod.
pub(crate) fn workload(pod: &Pod) -> Option<Workload> {
    let workload = pod.workload.as_ref()?;
    Some(Workload { kind: workload.kind.to_string(), name: workload.name.to_string() })
}

/// If policies denied a packet from an address of this node to a pod, marks the source as masqueraded, and returns a
/// hint. Packets that the node itself sends are always allowed. So the node forwarded this packet, with its own address
/// as source.
fn mark_masqueraded(from: &mut FlowEnd, to: &FlowEnd, event: &FlowEvent, names: Names<'_>) -> Option<String> {
    let cluster_state = names.engine.cluster_state();
    let by_policy = [Reason::NoRule, Reason::Revoked].iter().any(|reason| *reason as u8 == event.reason);
    let address = from.address.filter(|address| by_policy && cluster_state.is_local_address(*address))?;
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

/// Adds the Services that the packet was sent to. If the packet was denied post-DNAT, its destination is the address of
/// a backend. In this case, adds the Services that have this backend, in `via_services`.
fn name_services(to: &mut FlowEnd, event: &FlowEvent, cluster_state: &ClusterState) {
    let (Some(address), Some(port)) = (to.address, to.port) else { return };
    if let Some(frontend) = cluster_state.frontend_at(address, event.protocol, port) {
        let services = cluster_state.owners(&frontend).iter().filter_map(|owner| match owner {
            FrontendOwner::Service(key) => Some(key.to_string()),
            FrontendOwner::HostPort(_) => None,
        });
        to.services = services.collect();
    } else if event.reason == Reason::BackendDenied as u8 {
        let with_backend = cluster_state.services_of(Backend { address, port }, event.protocol);
        to.via_services = with_backend.iter().map(ToString::to_string).collect();
    }
}

fn reason_name(event: &FlowEvent) -> &'static str {
    Reason::from_code(event.reason).map_or("unknown", Reason::name)
}

/// Returns an address of an event; `None` if the packet is not IP.
pub(super) fn address_of(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
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

    /// Pod `db-0` on node `n1`, Service `db` with this pod as its backend, and node `n2`.
    const SHOP: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop, labels: {app: db}}, spec: {nodeName: n1}, status: {podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-x1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2]}]
ports: [{port: 5432}]
";

    /// Returns an engine with the objects of [`SHOP`]. The local node, `n1`, has the address 192.0.2.1.
    fn engine() -> Engine {
        let mut engine = Engine::new(NodeScope::All, FirstIds::default());
        let objects = manifest::parse(SHOP, "f").objects.into_iter().map(|located| located.object).collect();
        engine.apply(Event::Reset(objects));
        engine.apply(Event::LocalAddresses(vec![[192, 0, 2, 1].into()]));
        engine
    }

    fn event(direction: Direction, reason: Reason, source: [u8; 4], destination: [u8; 4], port: u16) -> FlowEvent {
        let (mut from, mut to) = ([0; 16], [0; 16]);
        from[..4].copy_from_slice(&source);
        to[..4].copy_from_slice(&destination);
        FlowEvent {
            direction: direction as u8,
            reason: reason as u8,
            family: 4,
            protocol: protocol::TCP,
            source: from,
            destination: to,
            destination_port: port.to_be_bytes(),
            ..FlowEvent::default()
        }
    }

    fn record(event: &FlowEvent, pod: Option<&PodKey>) -> FlowRecord {
        describe(event, pod, Names { engine: &engine(), node: "n1" }, UNIX_EPOCH).record
    }

    #[test]
    fn services_are_named_pre_dnat_and_post_dnat() {
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
            let to = record(&event(direction, reason, [10, 1, 0, 9], address, port), None).to;
            assert_eq!(to.services, services, "{reason:?} {port}");
            assert_eq!(to.via_services, via_services, "{reason:?} {port}");
        }
    }

    /// Returns `namespace/pod@node`.
    fn name(end: &FlowEnd) -> String {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{}/{}@{}", text(&end.namespace), text(&end.pod), text(&end.node))
    }

    #[test]
    fn ends_are_named_as_pods_with_their_node_or_as_nodes() {
        let to_db = |source| record(&event(Direction::Ingress, Reason::NoRule, source, [10, 1, 0, 2], 5432), None);
        for (source, expected) in [
            ([10, 1, 0, 2], "shop/db-0@n1"),
            ([192, 0, 2, 1], "/@n1"),
            ([192, 0, 2, 2], "/@n2"),
            ([203, 0, 113, 7], "/@"),
        ] {
            assert_eq!(name(&to_db(source).from), expected);
        }
        // A spoofed source address: the pod of the interface is the sender. Its object may be deleted already.
        let gone = PodKey::new("shop", "gone");
        let spoofed = event(Direction::Egress, Reason::SpoofedSource, [10, 1, 0, 2], [10, 1, 0, 3], 80);
        assert_eq!(name(&record(&spoofed, Some(&gone)).from), "shop/gone@");
        // If the pod of the interface is not known, the sender is the pod with the source address.
        let described = describe(&spoofed, None, Names { engine: &engine(), node: "n1" }, UNIX_EPOCH);
        let [source_labels, destination_labels] = described.labels;
        assert_eq!(source_labels.and_then(|labels| labels.get("app").cloned()).as_deref(), Some("db"));
        assert_eq!(destination_labels, None);
    }

    #[test]
    fn masqueraded_packets_are_marked_and_have_a_hint() {
        let node = [192, 0, 2, 1];
        let pod = PodKey::new("shop", "db-0");
        for (direction, reason, source, masqueraded) in [
            (Direction::Ingress, Reason::NoRule, node, true),
            (Direction::Ingress, Reason::Revoked, node, true),
            (Direction::Ingress, Reason::NoRule, [203, 0, 113, 7], false),
            (Direction::Ingress, Reason::Malformed, node, false),
            (Direction::Egress, Reason::NoRule, node, false),
        ] {
            let record = record(&event(direction, reason, source, [10, 1, 0, 2], 5432), Some(&pod));
            assert_eq!(record.from.masqueraded, masqueraded, "{direction:?} {reason:?} {source:?}");
            assert_eq!(record.hints.len(), usize::from(masqueraded));
        }
        let reported = record(&event(Direction::Ingress, Reason::NoRule, node, [10, 1, 0, 2], 5432), Some(&pod));
        let json = serde_json::to_string(&reported).expect("cannot serialize the record");
        assert!(json.contains(r#""node":"n1","masqueraded":true"#), "{json}");
        for part in ["externalTrafficPolicy: Local", "Service shop/db", "ipBlock 192.0.2.1/32"] {
            assert!(reported.hints[0].contains(part), "{}", reported.hints[0]);
        }
    }

    #[test]
    fn the_verdict_depends_on_the_reason_and_the_flags() {
        use FlowVerdict::{Allowed, Denied, Shadow};
        for (reason, flags, expected) in [
            (Reason::NoRule, 0, Denied),
            (Reason::NoRule, event_flags::GROUP, Denied),
            (Reason::Rule, 0, Allowed),
            (Reason::Rule, event_flags::OBSERVED, Allowed),
            (Reason::NoRule, event_flags::SHADOW, Shadow),
            (Reason::NoRule, event_flags::OBSERVED, Shadow),
        ] {
            let event = FlowEvent { reason: reason as u8, flags, ..FlowEvent::default() };
            assert_eq!(verdict(&event), expected, "{reason:?} {flags}");
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
