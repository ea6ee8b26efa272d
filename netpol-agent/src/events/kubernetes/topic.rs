//! What one Event is about, and how it is said.

use std::fmt::Write;

use netpol_common::{Direction, Reason};
use netpol_policy::text::Safe;

use crate::events::{End, PolicyRef};

/// An Event's note is no longer than this. Source: `NoteLengthLimit` of the API server's validation is 1024 bytes.
pub(super) const NOTE: usize = 1000;
/// Policies that a note names; the others are a number.
const NAMED: usize = 4;

/// Denied packets that are alike for whoever reads of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    /// Seen from the pod.
    pub direction: Direction,
    /// Why.
    pub reason: Reason,
    /// The other end; without a port, as the ports of those who open connections change.
    pub peer: End,
    /// Name or number.
    pub protocol: String,
    /// The destination's port.
    pub port: Option<u16>,
    /// Those that isolate the pod.
    pub policies: Vec<PolicyRef>,
}

/// An Event's `reason` for packets dropped so; `None`: no Event is written, as it would regard no pod.
pub(super) fn reason(reason: Reason) -> Option<&'static str> {
    words(reason).map(|(name, _)| name)
}

/// What is the matter, after "denied by …" or "dropped".
fn cause(reason: Reason) -> &'static str {
    words(reason).map_or(reason.name(), |(_, cause)| cause)
}

/// An Event's `reason`, and what is the matter.
fn words(reason: Reason) -> Option<(&'static str, &'static str)> {
    const DENIED: &str = "NetworkPolicyDenied";
    const FULL: &str = "NetworkPolicyTableFull";
    Some(match reason {
        Reason::NoRule => (DENIED, "no rule allows it"),
        Reason::NoBackend => (DENIED, "no rule allows any backend"),
        Reason::Backend => (DENIED, "it was sent to this backend, and no rule allows it"),
        Reason::SomeBackends => (DENIED, "rules allow only some backends, and another node chooses among them"),
        Reason::Revoked => (DENIED, "it was allowed when it was opened, and no longer is"),
        Reason::Malformed => (DENIED, "the packet ends before its headers do, or they contradict each other"),
        Reason::NotIp => (DENIED, "it is neither IPv4 nor IPv6"),
        Reason::TooManyHeaders => (DENIED, "the packet has more headers than are walked"),
        Reason::OrphanFragment => (DENIED, "a fragment whose first fragment was not seen or not allowed"),
        Reason::ForeignSource => ("ForeignSourceAddress", "sent from an address that is not the pod's"),
        Reason::TunnelEndpoint => ("TunnelEndpointDenied", "it is a tunnel endpoint of a node"),
        Reason::SpoofedSource => ("SpoofedSourceAddress", "the source address is not that of the pod that sent it"),
        Reason::SpoofedNeighbor => {
            ("SpoofedNeighborDiscovery", "the Ethernet source or a field of ARP or neighbor discovery is not the pod's")
        }
        Reason::NeighborRate => {
            ("NeighborDiscoveryLimited", "ARP or neighbor discovery longer or more frequent than the protocols need")
        }
        Reason::FlowTableFull => (FULL, "a rule allows it, but the node's table of flows is full"),
        Reason::TablesIncomplete => {
            (FULL, "a table of the node is full; the agent's log names the option that makes it larger")
        }
        Reason::UnknownPod
        | Reason::NoEndpoint
        | Reason::SenderGone
        | Reason::OtherHost
        | Reason::NotIsolated
        | Reason::Rule
        | Reason::Service
        | Reason::Flow
        | Reason::OwnNode
        | Reason::Itself
        | Reason::LinkControl
        | Reason::IcmpError => return None,
    })
}

/// `egress to shop/db (10.1.2.3) port 5432/TCP denied by NetworkPolicy shop/deny-all: no rule allows it`.
///
/// The API server lets nobody change a note: how often it happened is in the Event's series instead.
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
    let denied = matches!(
        topic.reason,
        Reason::NoRule | Reason::NoBackend | Reason::Backend | Reason::SomeBackends | Reason::Revoked
    );
    note += if denied { " denied by " } else { " dropped" };
    if denied {
        note += &policies(&topic.policies);
    }
    let _ = write!(note, ": {}", cause(topic.reason));
    shorten(note)
}

/// What is said instead of ever more Events, where a pod has already `told` of them.
pub(super) fn merged_note(topic: &Topic, told: usize) -> String {
    let direction = topic.direction.name();
    shorten(format!(
        "{direction} denied from or to more than {told} peers and ports: {}; all others are counted here, and the agent's \
         lines about denied flows name each",
        cause(topic.reason)
    ))
}

/// `Service shop/db (10.96.0.7)`; `shop/db-0 (10.1.2.3) behind Service shop/db`.
fn peer(end: &End) -> String {
    let place = match (services(&end.services), &end.pod, end.node, end.address) {
        (Some(services), _, _, Some(address)) => format!("{services} ({address})"),
        (_, Some(pod), _, Some(address)) => format!("{pod} ({address})"),
        (_, Some(pod), _, None) => pod.clone(),
        (_, None, Some(_), Some(address)) => format!("this node ({address})"),
        (_, None, None, Some(address)) => address.to_string(),
        (_, None, _, None) => "an unknown end".to_owned(),
    };
    match services(&end.behind) {
        Some(services) => format!("{place} behind {services}"),
        None => place,
    }
}

fn services(names: &[String]) -> Option<String> {
    match names {
        [] => None,
        [one] => Some(format!("Service {one}")),
        [first, others @ ..] => Some(format!("Service {first} and {} more", others.len())),
    }
}

fn protocol(name: &str) -> String {
    if name.bytes().all(|byte| byte.is_ascii_digit()) { format!("protocol {name}") } else { name.to_owned() }
}

fn policies(policies: &[PolicyRef]) -> String {
    let names: Vec<_> =
        policies.iter().take(NAMED).map(|policy| format!("{}/{}", policy.namespace, policy.name)).collect();
    match (policies.len(), policies.len().saturating_sub(NAMED)) {
        (0, _) => "the pod's policies".to_owned(),
        (1, _) => format!("NetworkPolicy {}", names[0]),
        (_, 0) => format!("NetworkPolicies {}", names.join(", ")),
        (_, more) => format!("NetworkPolicies {} and {more} more", names.join(", ")),
    }
}

/// Cuts what the API server would refuse.
pub(super) fn shorten(note: String) -> String {
    // `kubectl describe` shows it as it is.
    let mut note = Safe(note).to_string();
    if note.len() > NOTE {
        note.truncate(note.floor_char_boundary(NOTE));
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(direction: Direction, reason: Reason, pod: &str, port: Option<u16>) -> Topic {
        let policies = vec![PolicyRef { namespace: "shop".into(), name: "deny-all".into() }];
        let pod = (!pod.is_empty()).then(|| pod.to_owned());
        let peer = End { pod, node: None, address: Some([10, 1, 2, 3].into()), ..End::default() };
        Topic { direction, reason, peer, protocol: "TCP".into(), port, policies }
    }

    fn through(reason: Reason, pod: &str, services: &[&str], behind: &[&str]) -> Topic {
        let mut topic = topic(Direction::Egress, reason, pod, Some(80));
        topic.peer.services = services.iter().map(ToString::to_string).collect();
        topic.peer.behind = behind.iter().map(ToString::to_string).collect();
        topic
    }

    #[test]
    fn a_note_is_a_sentence() {
        let (ingress, egress) = (Direction::Ingress, Direction::Egress);
        for (topic, said) in [
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
                through(Reason::NoBackend, "", &["shop/db"], &[]),
                "egress to Service shop/db (10.1.2.3) port 80/TCP denied by NetworkPolicy shop/deny-all: no rule allows any \
                 backend",
            ),
            (
                through(Reason::Backend, "shop/db-0", &[], &["shop/db"]),
                "egress to shop/db-0 (10.1.2.3) behind Service shop/db port 80/TCP denied by NetworkPolicy shop/deny-all: it \
                 was sent to this backend, and no rule allows it",
            ),
            (
                through(Reason::SomeBackends, "", &["shop/a", "shop/b", "shop/c"], &[]),
                "egress to Service shop/a and 2 more (10.1.2.3) port 80/TCP denied by NetworkPolicy shop/deny-all: rules allow \
                 only some backends, and another node chooses among them",
            ),
            (
                topic(egress, Reason::ForeignSource, "", Some(53)),
                "egress to 10.1.2.3 port 53/TCP dropped: sent from an address that is not the pod's",
            ),
        ] {
            assert_eq!(note(&topic), said);
        }
    }

    #[test]
    fn many_policies_become_a_number_and_no_note_is_longer_than_the_api_server_takes() {
        let long = |n: usize| PolicyRef { namespace: "n".repeat(63), name: format!("{n}{}", "p".repeat(250)) };
        let policies: Vec<_> = (0..40).map(long).collect();
        let all = Topic { policies, ..topic(Direction::Egress, Reason::NoRule, "shop/db", Some(1)) };
        let note = note(&all);
        assert!(note.len() <= 1024 && note.ends_with('…'), "{note}");
        let six: Vec<_> = (0..6).map(|n| PolicyRef { namespace: "a".into(), name: n.to_string() }).collect();
        assert_eq!(super::policies(&six), "NetworkPolicies a/0, a/1, a/2, a/3 and 2 more");
    }

    #[test]
    fn what_is_denied_at_a_known_pod_has_an_event_and_what_passes_has_none() {
        for &each in Reason::ALL {
            let without =
                [Reason::UnknownPod, Reason::NoEndpoint, Reason::SenderGone, Reason::OtherHost].contains(&each);
            assert_eq!(reason(each).is_some(), !each.allows() && !without, "{}", each.name());
        }
    }
}
