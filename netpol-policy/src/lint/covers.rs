//! Whether one selector, peer or rule matches everything that another one matches, whatever objects exist.

use ipnet::IpNet;

use crate::model::{
    IpBlock, NAMESPACE_NAME_LABEL, Peer, Peers, PortMatch, PortRange, Ports, Requirement, Rule, Selector,
};

/// Returns whether `wide` certainly allows everything that `narrow` allows. The policies of both rules are in
/// `namespace`.
pub(super) fn rule(wide: &Rule, narrow: &Rule, namespace: &str) -> bool {
    ports(&wide.ports, &narrow.ports) && peers(&wide.peers, &narrow.peers, namespace)
}

fn peers(wide: &Peers, narrow: &Peers, namespace: &str) -> bool {
    match (wide, narrow) {
        (Peers::Any, _) => true,
        (Peers::Of(_), Peers::Any) => false,
        (Peers::Of(wide), Peers::Of(narrow)) => {
            // `narrow` is empty if all peers of its rule are invalid. The correct peers are unknown, so it is not
            // certain that `wide` covers them.
            !narrow.is_empty() && narrow.iter().all(|narrow| wide.iter().any(|wide| peer(wide, narrow, namespace)))
        }
    }
}

fn peer(wide: &Peer, narrow: &Peer, namespace: &str) -> bool {
    match (wide, narrow) {
        (Peer::Block(wide), Peer::Block(narrow)) => block(wide, narrow),
        (
            Peer::Pods { namespaces: wide_namespaces, pods: wide },
            Peer::Pods { namespaces: narrow_namespaces, pods: narrow },
        ) => {
            let covers_namespaces = match (wide_namespaces, narrow_namespaces) {
                (None, None) => true,
                (Some(wide), Some(narrow)) => selector(wide, narrow),
                (Some(wide), None) => {
                    !wide.invalid
                        && wide.requirements.iter().all(|requirement| is_only_namespace(requirement, namespace))
                }
                (None, Some(narrow)) => {
                    !narrow.invalid
                        && narrow.requirements.iter().any(|requirement| is_only_namespace(requirement, namespace))
                }
            };
            covers_namespaces && selector(wide, narrow)
        }
        (Peer::Block(_), Peer::Pods { .. }) | (Peer::Pods { .. }, Peer::Block(_)) => false,
    }
}

/// Returns whether a requirement selects only the namespace with this name.
fn is_only_namespace(requirement: &Requirement, namespace: &str) -> bool {
    matches!(requirement, Requirement::In(key, values)
        if **key == *NAMESPACE_NAME_LABEL && matches!(values.as_slice(), [value] if **value == *namespace))
}

/// Returns whether `wide` selects everything that `narrow` selects.
pub(super) fn selector(wide: &Selector, narrow: &Selector) -> bool {
    !wide.invalid
        && !narrow.invalid
        && wide.requirements.iter().all(|wide| narrow.requirements.iter().any(|narrow| implies(narrow, wide)))
}

/// Returns whether every set of labels that meets `narrow` also meets `wide`.
fn implies(narrow: &Requirement, wide: &Requirement) -> bool {
    if narrow == wide {
        return true;
    }
    match (narrow, wide) {
        (Requirement::In(key, values), Requirement::In(other, allowed)) => {
            key == other && values.iter().all(|value| allowed.binary_search(value).is_ok())
        }
        (Requirement::In(key, _), Requirement::Exists(other))
        | (Requirement::DoesNotExist(key), Requirement::NotIn(other, _)) => key == other,
        (Requirement::In(key, values), Requirement::NotIn(other, excluded)) => {
            key == other && !values.iter().any(|value| excluded.binary_search(value).is_ok())
        }
        (Requirement::NotIn(key, values), Requirement::NotIn(other, excluded)) => {
            key == other && excluded.iter().all(|value| values.binary_search(value).is_ok())
        }
        _ => false,
    }
}

fn block(wide: &IpBlock, narrow: &IpBlock) -> bool {
    let are_disjoint = |one: &IpNet, other: &IpNet| !one.contains(other) && !other.contains(one);
    wide.cidr.contains(&narrow.cidr)
        && wide.except.iter().all(|wide_excluded| {
            are_disjoint(wide_excluded, &narrow.cidr)
                || narrow.except.iter().any(|excluded| excluded.contains(wide_excluded))
        })
}

fn ports(wide: &Ports, narrow: &Ports) -> bool {
    match (wide, narrow) {
        (Ports::Any, _) => true,
        (Ports::Of(_), Ports::Any) => false,
        (Ports::Of(wide), Ports::Of(narrow)) => {
            !narrow.is_empty() && narrow.iter().all(|narrow| wide.iter().any(|wide| port(wide, narrow)))
        }
    }
}

fn port(wide: &PortMatch, narrow: &PortMatch) -> bool {
    wide.protocol == narrow.protocol
        && match (&wide.port, &narrow.port) {
            (PortRange::All, _) => true,
            (PortRange::Range(first, last), PortRange::Range(from, to)) => first <= from && to <= last,
            (wide, narrow) => wide == narrow,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;
    use crate::model::Object;

    fn parse_rule(rule: &str) -> Rule {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}}, spec: \
             {{podSelector: {{}}, ingress: [{rule}]}}}}"
        );
        let mut parsed = manifest::parse(&text, "f");
        assert_eq!(parsed.errors, [], "{rule}");
        let Object::Policy(policy) = parsed.objects.remove(0).object else { panic!("not a policy") };
        policy.ingress.expect("ingress rules").remove(0)
    }

    #[test]
    fn a_wide_rule_covers_a_narrow_rule_but_a_narrow_rule_does_not_cover_a_wide_rule() {
        for (wide, narrow) in [
            ("{}", "{from: [{podSelector: {}}], ports: [{port: 80}]}"),
            ("{from: [{namespaceSelector: {}}]}", "{from: [{podSelector: {matchLabels: {a: b}}}]}"),
            ("{from: [{podSelector: {}}]}", "{from: [{podSelector: {matchLabels: {a: b}}}], ports: [{port: 80}]}"),
            ("{ports: [{port: 80, endPort: 90}]}", "{ports: [{port: 85}]}"),
            ("{ports: [{}]}", "{ports: [{port: http}]}"),
            (
                "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}",
                "{from: [{ipBlock: {cidr: 10.2.0.0/16}}]}",
            ),
            (
                "{from: [{podSelector: {matchExpressions: [{key: a, operator: In, values: [b, c]}]}}]}",
                "{from: [{podSelector: {matchLabels: {a: b, d: e}}}]}",
            ),
            (
                "{from: [{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [c]}]}}]}",
                "{from: [{podSelector: {matchLabels: {a: b}}}]}",
            ),
            (
                "{from: [{podSelector: {}}]}",
                "{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop, k: v}}}]}",
            ),
        ] {
            let (wide_rule, narrow_rule) = (parse_rule(wide), parse_rule(narrow));
            assert!(rule(&wide_rule, &narrow_rule, "shop"), "{wide} {narrow}");
            assert!(!rule(&narrow_rule, &wide_rule, "shop"), "{narrow} {wide}");
        }
        // Neither of these rules covers the other.
        for (one, other) in [
            ("{ports: [{port: 80}]}", "{ports: [{port: 80, protocol: UDP}]}"),
            ("{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}", "{from: [{podSelector: {}}]}"),
            (
                "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}",
                "{from: [{ipBlock: {cidr: 10.1.2.0/24}}]}",
            ),
            ("{from: [{podSelector: {matchLabels: {a: b}}}]}", "{from: [{podSelector: {matchLabels: {a: c}}}]}"),
        ] {
            assert!(
                !rule(&parse_rule(one), &parse_rule(other), "shop")
                    && !rule(&parse_rule(other), &parse_rule(one), "shop"),
                "{one}"
            );
        }
    }
}
