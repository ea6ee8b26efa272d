//! Network policies.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};

use super::block::block;
use super::ports::ports;
use super::selector::selector;
use super::{Problems, pod};
use crate::model::{Peer, Peers, Policy, PolicyKey, Rule};

impl Policy {
    /// Understands a policy. This never fails: what is not understood is listed in [`Policy::problems`] and matches nothing,
    /// and the policy isolates all the same.
    pub fn from_api(api: &NetworkPolicy) -> Self {
        let mut problems = Problems::default();
        let absent = NetworkPolicySpec::default();
        let spec = api.spec.as_ref().unwrap_or_else(|| {
            problems.error("spec", "is absent; every pod of the namespace is isolated for ingress");
            &absent
        });
        let pods = selector(spec.pod_selector.as_ref(), "spec.podSelector", &mut problems);
        if pods.invalid {
            problems
                .error("spec.podSelector", "is not understood; every pod of the namespace is isolated by this policy");
        }
        let isolates = isolates(spec, &mut problems);
        let ingress: Vec<Rule> = spec
            .ingress
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, rule)| {
                read_rule(
                    rule.from.as_deref(),
                    rule.ports.as_deref(),
                    &format!("spec.ingress[{i}]"),
                    "from",
                    &mut problems,
                )
            })
            .collect();
        let egress: Vec<Rule> = spec
            .egress
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, rule)| {
                read_rule(rule.to.as_deref(), rule.ports.as_deref(), &format!("spec.egress[{i}]"), "to", &mut problems)
            })
            .collect();
        for (isolated, rules, name, direction) in
            [(isolates.ingress, &ingress, "ingress", "Ingress"), (isolates.egress, &egress, "egress", "Egress")]
        {
            if !isolated && !rules.is_empty() {
                problems.warning(
                    format!("spec.{name}"),
                    format!("has rules, but policyTypes does not list {direction}: they have no effect"),
                );
            }
        }
        Self {
            key: PolicyKey::new(pod::namespace(&api.metadata), pod::name(&api.metadata)),
            pods,
            ingress: isolates.ingress.then_some(ingress),
            egress: isolates.egress.then_some(egress),
            problems: problems.0,
        }
    }
}

struct Isolates {
    ingress: bool,
    egress: bool,
}

/// `policyTypes`, with what the API server would default it to.
fn isolates(spec: &NetworkPolicySpec, problems: &mut Problems) -> Isolates {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return Isolates { ingress: true, egress: spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) };
    }
    let mut isolates = Isolates { ingress: false, egress: false };
    for (index, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => isolates.ingress = true,
            "Egress" => isolates.egress = true,
            unknown => {
                problems.error(
                    format!("spec.policyTypes[{index}]"),
                    format!("unknown policy type `{unknown}`; write Ingress or Egress. Until then both directions are isolated"),
                );
                return Isolates { ingress: true, egress: true };
            }
        }
    }
    isolates
}

fn read_rule(
    peers: Option<&[NetworkPolicyPeer]>,
    api_ports: Option<&[NetworkPolicyPort]>,
    field: &str,
    peers_name: &str,
    problems: &mut Problems,
) -> Rule {
    let items = peers.unwrap_or_default();
    let peers = if items.is_empty() {
        Peers::Any
    } else {
        let understood = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| read_peer(item, &format!("{field}.{peers_name}[{index}]"), problems));
        Peers::Of(understood.collect())
    };
    Rule { peers, ports: ports(api_ports, &format!("{field}.ports"), problems) }
}

fn read_peer(api: &NetworkPolicyPeer, field: &str, problems: &mut Problems) -> Option<Peer> {
    let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = api;
    match (ip_block, namespace_selector, pod_selector) {
        (None, None, None) => {
            problems.error(
                field,
                "names nobody: it needs podSelector, namespaceSelector or ipBlock. To allow everyone, leave the list out",
            );
            None
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            problems.error(field, "has an ipBlock and a selector; write them as two items of the list");
            None
        }
        (Some(api), None, None) => block(api, &format!("{field}.ipBlock"), problems).map(Peer::Block),
        (None, namespaces, pods) => Some(Peer::Pods {
            namespaces: namespaces
                .as_ref()
                .map(|api| selector(Some(api), &format!("{field}.namespaceSelector"), problems)),
            pods: selector(pods.as_ref(), &format!("{field}.podSelector"), problems),
        }),
    }
}
