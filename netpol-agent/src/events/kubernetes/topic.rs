//! The topic of a Kubernetes Event about denied packets (what these packets have in common), and the Event's note (its
//! text).

use std::fmt::Write;

use netpol_api::FlowEnd;
use netpol_common::{Direction, Reason};
use netpol_policy::text::Safe;

/// Maximum length of an Event's note in bytes, without the `…` of a shortened note. The API server's validation allows
/// 1024 bytes (`NoteLengthLimit`).
pub(super) const MAX_NOTE_LENGTH: usize = 1000;
/// Maximum number of policies that a note names; the others are only counted.
const MAX_NAMED_POLICIES: usize = 4;

/// What the packets of one Event have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    /// The direction, seen from the pod.
    pub direction: Direction,
    /// Why the packets were denied.
    pub reason: Reason,
    /// If true, the packets were allowed, but would be denied if policies in shadow mode were enforced. With
    /// `--observe`: if the policies of all modes were enforced.
    pub shadow: bool,
    /// The peer, without its port, because the ports of clients change.
    pub peer: Box<FlowEnd>,
    /// The protocol's name or number.
    pub protocol: String,
    /// The destination's port.
    pub port: Option<u16>,
    /// The policies that isolate the pod, `namespace/name`. If `shadow` is true: only those that are not enforced.
    pub policies: Vec<String>,
}

/// Returns whether packets denied with this reason have an Event. Reasons that do not concern a known pod have none.
pub(super) fn has_event(reason: Reason) -> bool {
    reason_and_cause(reason).is_some()
}

/// Returns an Event's `reason`.
pub(super) fn event_reason(topic: &Topic) -> Option<&'static str> {
    let (name, _) = reason_and_cause(topic.reason)?;
    Some(if topic.shadow { SHADOW_DENIED } else { name })
}

/// The `reason` of an Event about would-be denials: see [`Topic::shadow`].
const SHADOW_DENIED: &str = "NetworkPolicyShadowDenied";

/// Returns the cause: the text after "denied by …: " or "dropped: " in a note.
fn cause(reason: Reason) -> &'static str {
    reason_and_cause(reason).map_or(reason.name(), |(_, cause)| cause)
}

/// Returns an Event's `reason`, and the cause.
fn reason_and_cause(reason: Reason) -> Option<(&'static str, &'static str)> {
    const DENIED: &str = "NetworkPolicyDenied";
    const FULL: &str = "NetworkPolicyTableFull";
    Some(match reason {
        Reason::NoRule => (DENIED, "no rule allows it"),
        Reason::NoAllowedBackend => (DENIED, "no rule allows any backend"),
        Reason::BackendDenied => (DENIED, "it was translated to this backend, which no rule allows"),
        Reason::NotAllBackendsAllowed => {
            (DENIED, "rules allow only some backends, and another node selects the backend")
        }
        Reason::Revoked => (DENIED, "the flow was allowed when it started, but no longer is"),
        Reason::Malformed => (DENIED, "the packet is truncated, or its headers are inconsistent"),
        Reason::NotIp => (DENIED, "it is neither IPv4 nor IPv6"),
        Reason::TooManyHeaders => (DENIED, "the packet has too many headers"),
        Reason::OrphanFragment => (DENIED, "its first fragment was not received, or not allowed"),
        Reason::SpoofedSource => ("SpoofedSource", "sent from an address that is not the pod's"),
        Reason::TunnelEndpoint => ("TunnelEndpointDenied", "the destination is a tunnel endpoint of a node"),
        Reason::UnverifiedSource => ("UnverifiedSource", "the source address is not that of the pod that sent it"),
        Reason::SpoofedNeighbor => {
            ("SpoofedNeighborDiscovery", "the Ethernet source or a field of ARP or neighbor discovery is not the pod's")
        }
        Reason::NeighborLimit => (
            "NeighborDiscoveryRateLimited",
            "packets of ARP or neighbor discovery that are longer or more frequent than the protocols need",
        ),
        Reason::FlowTableFull => (FULL, "a rule allows it, but the node's flow table is full"),
        Reason::TablesIncomplete => {
            (FULL, "a BPF map of the node is full; the agent's log names the option that increases its size")
        }
        // Denied, but at no known pod.
        Reason::UnknownPod
        | Reason::NoEndpoint
        | Reason::SourceEndpointGone
        | Reason::OtherHost
        // Allowed.
        | Reason::NotIsolated
        | Reason::Rule
        | Reason::Service
        | Reason::Flow
        | Reason::LocalNode
        | Reason::Hairpin
        | Reason::NeighborDiscovery
        | Reason::IcmpError => return None,
    })
}

/// Returns a note such as `egress to shop/db (10.1.2.3) port 5432/TCP denied by NetworkPolicy shop/deny-all: no rule
/// allows it`; for a would-be denial, `… would be denied by NetworkPolicy shop/deny-all if enforced: …`.
///
/// The note does not contain the number of packets, because the API server rejects changes of a note. The number is in
/// the Event's series.
pub(super) fn note(topic: &Topic) -> String {
    let mut note = match topic.direction {
        Direction::Ingress => "ingress from ",
        Direction::Egress => "egress to ",
    }
    .to_owned();
    note += &peer(&topic.peer);
    let _ = match (topic.port, topic.direction) {
        (Some(port), Direction::Ingress) => write!(note, " to port {port}/{}", topic.protocol),
        (Some(port), Direction::Egress) => write!(note, " port {port}/{}", topic.protocol),
        (None, _) => write!(note, ", {}", protocol(&topic.protocol)),
    };
    let _ = match (topic.shadow, topic.reason.is_by_policies()) {
        (true, _) => write!(note, " would be denied by {} if enforced", policies(&topic.policies)),
        (false, true) => write!(note, " denied by {}", policies(&topic.policies)),
        (false, false) => write!(note, " dropped"),
    };
    let _ = write!(note, ": {}", cause(topic.reason));
    escape_and_shorten(note)
}

/// Returns the note of a merged Event. `reported`: the number of Events that the pod already has. The merged Event
/// counts all further denied traffic of the pod.
pub(super) fn merged_note(topic: &Topic, reported: usize) -> String {
    let direction = topic.direction.name();
    let denied = if topic.shadow { "would be denied" } else { "denied" };
    escape_and_shorten(format!(
        "{direction} {denied} for more than {reported} peers and ports: {}; this Event counts all others, and the agent's standard output \
         has lines about them (their rate is limited)",
        cause(topic.reason)
    ))
}

/// Formats a peer: `Service shop/db (10.96.0.7)`; `shop/db-0 (10.1.2.3) through Service shop/db`.
fn peer(end: &FlowEnd) -> String {
    let name = match (services(&end.services), end.pod_name(), &end.node, end.address) {
        (Some(services), _, _, Some(address)) => format!("{services} ({address})"),
        (_, Some(pod), _, Some(address)) => format!("{pod} ({address})"),
        (_, Some(pod), _, None) => pod,
        (_, None, Some(node), Some(address)) => format!("node {node} ({address})"),
        (_, None, None, Some(address)) => address.to_string(),
        (_, None, _, None) => "an unknown peer".to_owned(),
    };
    match services(&end.via_services) {
        Some(services) => format!("{name} through {services}"),
        None => name,
    }
}

/// Formats Services: `Service shop/db`; `Service shop/db and 2 more`.
fn services(names: &[String]) -> Option<String> {
    match names {
        [] => None,
        [one] => Some(format!("Service {one}")),
        [first, others @ ..] => Some(format!("Service {first} and {} more", others.len())),
    }
}

/// Formats a protocol's name or number: `TCP`; `protocol 47`.
fn protocol(name: &str) -> String {
    if name.bytes().all(|byte| byte.is_ascii_digit()) { format!("protocol {name}") } else { name.to_owned() }
}

/// Formats policies: `NetworkPolicy shop/web`; `NetworkPolicies shop/a, shop/b and 3 more`.
fn policies(policies: &[String]) -> String {
    let names = &policies[..policies.len().min(MAX_NAMED_POLICIES)];
    match (policies.len(), policies.len().saturating_sub(MAX_NAMED_POLICIES)) {
        (0, _) => "the pod's policies".to_owned(),
        (1, _) => format!("NetworkPolicy {}", names[0]),
        (_, 0) => format!("NetworkPolicies {}", names.join(", ")),
        (_, more) => format!("NetworkPolicies {} and {more} more", names.join(", ")),
    }
}

/// Escapes a note, and shortens it to the length that the API server accepts.
pub(super) fn escape_and_shorten(note: String) -> String {
    // `kubectl describe` prints a note as it is, with control characters.
    let mut note = Safe(note).to_string();
    if note.len() > MAX_NOTE_LENGTH {
        note.truncate(note.floor_char_boundary(MAX_NOTE_LENGTH));
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a topic. Its peer has the address 10.1.2.3. The peer is the pod `peer_pod`; if `peer_pod` is empty, the
    /// peer is not a pod.
    fn topic(direction: Direction, reason: Reason, peer_pod: &str, port: Option<u16>) -> Topic {
        let policies = vec!["shop/deny-all".to_owned()];
        let (namespace, pod) =
            peer_pod.split_once('/').map(|(namespace, pod)| (namespace.to_owned(), pod.to_owned())).unzip();
        let peer = Box::new(FlowEnd { namespace, pod, address: Some([10, 1, 2, 3].into()), ..FlowEnd::default() });
        Topic { direction, reason, shadow: false, peer, protocol: "TCP".into(), port, policies }
    }

    /// Returns an egress topic. Its peer is the address of `services`, or a backend of `via_services`.
    fn with_services(reason: Reason, peer_pod: &str, services: &[&str], via_services: &[&str]) -> Topic {
        let mut topic = topic(Direction::Egress, reason, peer_pod, Some(80));
        topic.peer.services = services.iter().map(ToString::to_string).collect();
        topic.peer.via_services = via_services.iter().map(ToString::to_string).collect();
        topic
    }

    #[test]
    fn a_merged_note_names_no_peer() {
        assert_eq!(
            merged_note(&topic(Direction::Ingress, Reason::NoRule, "shop/web", Some(80)), 10),
            "ingress denied for more than 10 peers and ports: no rule allows it; this Event counts all others, and the \
             agent's standard output has lines about them (their rate is limited)"
        );
    }

    #[test]
    fn a_note_is_a_sentence() {
        let (ingress, egress) = (Direction::Ingress, Direction::Egress);
        for (topic, expected) in [
            (
                topic(egress, Reason::NoRule, "shop/db", Some(5432)),
                "egress to shop/db (10.1.2.3) port 5432/TCP denied by NetworkPolicy shop/deny-all: no rule allows it",
            ),
            (
                topic(ingress, Reason::NoRule, "", Some(80)),
                "ingress from 10.1.2.3 to port 80/TCP denied by NetworkPolicy shop/deny-all: no rule allows it",
            ),
            (
                Topic { protocol: "ICMP".into(), ..topic(ingress, Reason::NoRule, "shop/db", None) },
                "ingress from shop/db (10.1.2.3), ICMP denied by NetworkPolicy shop/deny-all: no rule allows it",
            ),
            (
                Topic { protocol: "47".into(), ..topic(egress, Reason::NoRule, "", None) },
                "egress to 10.1.2.3, protocol 47 denied by NetworkPolicy shop/deny-all: no rule allows it",
            ),
            (
                with_services(Reason::NoAllowedBackend, "", &["shop/db"], &[]),
                "egress to Service shop/db (10.1.2.3) port 80/TCP denied by NetworkPolicy shop/deny-all: no rule allows any \
                 backend",
            ),
            (
                with_services(Reason::BackendDenied, "shop/db-0", &[], &["shop/db"]),
                "egress to shop/db-0 (10.1.2.3) through Service shop/db port 80/TCP denied by NetworkPolicy shop/deny-all: it \
                 was translated to this backend, which no rule allows",
            ),
            (
                with_services(Reason::NotAllBackendsAllowed, "", &["shop/a", "shop/b", "shop/c"], &[]),
                "egress to Service shop/a and 2 more (10.1.2.3) port 80/TCP denied by NetworkPolicy shop/deny-all: rules allow \
                 only some backends, and another node selects the backend",
            ),
            (
                topic(egress, Reason::SpoofedSource, "", Some(53)),
                "egress to 10.1.2.3 port 53/TCP dropped: sent from an address that is not the pod's",
            ),
            (
                Topic { shadow: true, ..topic(egress, Reason::NoRule, "shop/db", Some(5432)) },
                "egress to shop/db (10.1.2.3) port 5432/TCP would be denied by NetworkPolicy shop/deny-all if enforced: no rule \
                 allows it",
            ),
        ] {
            assert_eq!(note(&topic), expected);
        }
    }

    #[test]
    fn policies_beyond_the_limit_are_counted_and_notes_are_shortened() {
        let long = |n: usize| format!("{}/{n}{}", "n".repeat(63), "p".repeat(250));
        let policies: Vec<_> = (0..40).map(long).collect();
        let long_topic = Topic { policies, ..topic(Direction::Egress, Reason::NoRule, "shop/db", Some(1)) };
        let note = note(&long_topic);
        assert!(note.len() <= 1024 && note.ends_with('…'), "{note}");
        let six: Vec<_> = (0..6).map(|n| format!("a/{n}")).collect();
        assert_eq!(super::policies(&six), "NetworkPolicies a/0, a/1, a/2, a/3 and 2 more");
    }

    #[test]
    fn packets_denied_at_a_known_pod_have_an_event_and_allowed_packets_have_none() {
        for &reason in Reason::ALL {
            let is_without_pod =
                [Reason::UnknownPod, Reason::NoEndpoint, Reason::SourceEndpointGone, Reason::OtherHost]
                    .contains(&reason);
            assert_eq!(has_event(reason), !reason.allows() && !is_without_pod, "{}", reason.name());
        }
    }
}
