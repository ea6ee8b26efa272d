//! Parses `NetworkPolicies`.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};

use super::block::block;
use super::ports::ports;
use super::selector::selector;
use super::{Diagnostics, mode, pod};
use crate::model::{Peer, Peers, Policy, PolicyKey, Rule};

impl Policy {
    /// Parses a policy. This never fails: invalid parts are listed in [`Policy::diagnostics`]. Invalid parts of rules
    /// match nothing. The policy still isolates the pods that it selects. A policy with an invalid `spec.podSelector`
    /// isolates all pods of the namespace.
    pub fn from_api(api: &NetworkPolicy) -> Self {
        let mut diagnostics = Diagnostics::default();
        let absent = NetworkPolicySpec::default();
        let spec = api.spec.as_ref().unwrap_or_else(|| {
            diagnostics.error("spec", "is missing; the policy isolates every pod of the namespace for ingress");
            &absent
        });
        let pods = selector(spec.pod_selector.as_ref(), "spec.podSelector", &mut diagnostics);
        if pods.invalid {
            diagnostics.error("spec.podSelector", "is invalid; the policy isolates every pod of the namespace");
        }
        let isolated = isolated_directions(spec, &mut diagnostics);
        let ingress: Vec<Rule> = spec
            .ingress
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, rule)| {
                parse_rule(
                    rule.from.as_deref(),
                    rule.ports.as_deref(),
                    &format!("spec.ingress[{i}]"),
                    "from",
                    &mut diagnostics,
                )
            })
            .collect();
        let egress: Vec<Rule> = spec
            .egress
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, rule)| {
                parse_rule(
                    rule.to.as_deref(),
                    rule.ports.as_deref(),
                    &format!("spec.egress[{i}]"),
                    "to",
                    &mut diagnostics,
                )
            })
            .collect();
        for (is_isolated, rules, name, direction) in
            [(isolated.ingress, &ingress, "ingress", "Ingress"), (isolated.egress, &egress, "egress", "Egress")]
        {
            if !is_isolated && !rules.is_empty() {
                diagnostics.warning(
                    format!("spec.{name}"),
                    format!("has rules that have no effect, because policyTypes does not list {direction}"),
                );
            }
        }
        // The annotation `netpol.io/mode`: whether the policy is enforced, or in shadow mode.
        let mode = mode::mode(&api.metadata, &mut diagnostics);
        Self {
            mode,
            key: PolicyKey::new(pod::namespace(&api.metadata), pod::name(&api.metadata)),
            pods,
            ingress: isolated.ingress.then_some(ingress),
            egress: isolated.egress.then_some(egress),
            diagnostics: diagnostics.0,
        }
    }
}

/// The directions in which a policy isolates the pods that it selects.
struct IsolatedDirections {
    ingress: bool,
    egress: bool,
}

/// Returns the directions in `policyTypes`, with the defaults of the API server.
fn isolated_directions(spec: &NetworkPolicySpec, diagnostics: &mut Diagnostics) -> IsolatedDirections {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return IsolatedDirections {
            ingress: true,
            egress: spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        };
    }
    let mut isolated = IsolatedDirections { ingress: false, egress: false };
    for (index, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => isolated.ingress = true,
            "Egress" => isolated.egress = true,
            unknown => {
                diagnostics.error(
                    format!("spec.policyTypes[{index}]"),
                    format!("unknown policy type `{unknown}`; write Ingress or Egress. Until then both directions are isolated"),
                );
                return IsolatedDirections { ingress: true, egress: true };
            }
        }
    }
    isolated
}

fn parse_rule(
    peers: Option<&[NetworkPolicyPeer]>,
    api_ports: Option<&[NetworkPolicyPort]>,
    field: &str,
    peers_name: &str,
    diagnostics: &mut Diagnostics,
) -> Rule {
    let items = peers.unwrap_or_default();
    let peers = if items.is_empty() {
        Peers::Any
    } else {
        let valid = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| parse_peer(item, &format!("{field}.{peers_name}[{index}]"), diagnostics));
        Peers::Of(valid.collect())
    };
    Rule { peers, ports: ports(api_ports, &format!("{field}.ports"), diagnostics) }
}

fn parse_peer(api: &NetworkPolicyPeer, field: &str, diagnostics: &mut Diagnostics) -> Option<Peer> {
    let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = api;
    match (ip_block, namespace_selector, pod_selector) {
        (None, None, None) => {
            diagnostics.error(
                field,
                "selects no peer; set podSelector, namespaceSelector or ipBlock. To allow all peers, omit the list",
            );
            None
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            diagnostics.error(field, "has an ipBlock and a selector; write them as two list items");
            None
        }
        (Some(api), None, None) => block(api, &format!("{field}.ipBlock"), diagnostics).map(Peer::Block),
        (None, namespaces, pods) => Some(Peer::Pods {
            namespaces: namespaces
                .as_ref()
                .map(|api| selector(Some(api), &format!("{field}.namespaceSelector"), diagnostics)),
            pods: selector(pods.as_ref(), &format!("{field}.podSelector"), diagnostics),
        }),
    }
}
