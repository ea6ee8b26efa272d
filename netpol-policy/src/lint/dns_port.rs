//! Finds pods without any rule for DNS. Used for an input that does not contain the objects of the cluster DNS.

use std::collections::BTreeMap;

use netpol_common::Direction;

use super::RuleId;
use super::context::{Context, shortened_list};
use super::finding::{Draft, DraftFix};
use crate::model::{Peer, PolicyKey, PortMatch, PortRange, Ports, Protocol, Rule};
use crate::reference;

/// The port of DNS, and the port on which the DNS pods of some distributions listen.
const DNS_PORTS: [u16; 2] = [53, 5353];

/// The rule that allows the cluster DNS of most distributions.
const RULE: [&str; 10] = [
    "- to:",
    "  - namespaceSelector:",
    "      matchLabels:",
    "        kubernetes.io/metadata.name: kube-system",
    "    podSelector:",
    "      matchLabels:",
    "        k8s-app: kube-dns",
    "  ports:",
    "  - {port: 53, protocol: UDP}",
    "  - {port: 53, protocol: TCP}",
];

/// Finds pods that have egress rules for other pods, but no rule for a DNS port. Adds the finding to the first policy
/// that isolates these pods. The finding is information only, because programs may use addresses instead of names.
pub(super) fn check(context: &Context<'_>, drafts: &mut BTreeMap<PolicyKey, Vec<Draft>>) {
    let mut found: BTreeMap<&PolicyKey, Vec<String>> = BTreeMap::new();
    for (namespace, groups) in &context.groups {
        // All pods of a group have the same labels, so the same policies (`list`) isolate them for egress.
        let groups = groups.iter().zip(context.egress.lists_of(namespace)).filter(|(group, _)| !group.host_network);
        for (group, list) in groups {
            let policies = context.egress.most_permissive(*list);
            let rules = || policies.iter().flat_map(|policy| reference::rules(policy, Direction::Egress));
            let (Some(first), true) = (policies.first(), rules().any(has_pod_peer)) else { continue };
            if !rules().any(|rule| may_include_dns(&rule.ports)) {
                found.entry(&first.key).or_default().extend(group.pods.iter().map(|pod| pod.key.to_string()));
            }
        }
    }
    for (policy, mut pods) in found {
        pods.sort();
        let noun = if pods.len() == 1 { "pod" } else { "pods" };
        let draft = Draft::new(
            RuleId::DNS_DENIED,
            "spec.egress",
            format!("No rule allows {noun} {} to reach port 53 of any address.", shortened_list(&pods, "pods")),
            "Names, such as those of Services, cannot be resolved.",
            DraftFix::from(format!("add to spec.egress of NetworkPolicy {policy}")).with_yaml(&RULE),
        );
        drafts.entry(policy.clone()).or_default().push(draft.into_info());
    }
}

/// Returns whether a peer of the rule selects pods.
fn has_pod_peer(rule: &Rule) -> bool {
    rule.peers.listed().iter().any(|peer| matches!(peer, Peer::Pods { .. }))
}

/// Returns whether the ports of a rule may include a DNS port. A named port may be a port of the DNS pods.
fn may_include_dns(ports: &Ports) -> bool {
    let is_dns = |port: &PortMatch| {
        let includes_dns = match &port.port {
            PortRange::All | PortRange::Named(_) => true,
            PortRange::Range(first, last) => DNS_PORTS.iter().any(|dns| (first..=last).contains(&dns)),
        };
        includes_dns && port.protocol != Protocol::Sctp
    };
    match ports {
        Ports::Any => true,
        Ports::Of(ports) => ports.iter().any(is_dns),
    }
}
