//! Tests of inputs without the objects of other applications, or without the pods that a controller creates later. Also
//! tests of mistakes in a list of ports or peers.

use super::report;
use crate::lint::RuleId;

/// Namespace `shop` with pod `web`, which has port 8080.
const SHOP: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: main, ports: [{containerPort: 8080}]}]}
---
";
/// With this Namespace, lint assumes that the input is a whole cluster.
const WHOLE_CLUSTER: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}\n---\n";

/// Returns a policy for the pods that `selector` selects.
fn policy(selector: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}}, \
         spec: {{podSelector: {{{selector}}}, {spec}}}}}\n---\n"
    )
}

/// Returns two lists. The first has the findings, as `NP010 path: text`. The second has the rules that were not
/// checked, as `NP010: reason`. Omits rules about whole namespaces, DNS and the API server.
fn lint(more: &str, policy: &str) -> (Vec<String>, Vec<String>) {
    let report = report(&format!("{SHOP}{more}{policy}"));
    let is_included = |rule: RuleId| rule < RuleId::DNS_DENIED;
    let findings = report.findings.iter().filter(|finding| is_included(finding.rule));
    let path = |path: &Option<String>| path.clone().unwrap_or_default();
    let not_checked = report.not_checked.iter().filter(|it| is_included(it.rule));
    (
        findings.map(|it| format!("{} {}: {}", it.rule, path(&it.path), it.text())).collect(),
        not_checked.map(|it| format!("{}: {}", it.rule, it.reason)).collect(),
    )
}

#[test]
fn pods_that_a_controller_may_create_are_not_reported_as_missing() {
    let custom = |namespace: &str| {
        format!(
            "{{apiVersion: example.com/v1, kind: Collector, metadata: {{name: c, namespace: {namespace}, labels: {{app: other}}}}, \
             spec: {{podMetadata: {{labels: {{app: collector, tier: ops}}}}}}}}\n---\n"
        )
    };
    let for_pod_labels =
        policy("matchLabels: {app: collector}", "ingress: [{from: [{podSelector: {matchLabels: {tier: ops}}}]}]");
    let reason = "a controller may create the selected pods for objects of kind Collector";
    assert_eq!(
        lint(&custom("shop"), &for_pod_labels),
        (vec![], vec![format!("NP010: {reason}"), format!("NP020: {reason}")])
    );
    // No controller creates these pods: the object is in another namespace, only the object itself has the label, or
    // the object is a ConfigMap.
    let for_object_label = policy("matchLabels: {app: other}", "ingress: []");
    let config_map = custom("shop").replace("example.com/v1", "v1").replace("Collector", "ConfigMap");
    for (more, policy) in
        [(&custom("else"), &for_pod_labels), (&custom("shop"), &for_object_label), (&config_map, &for_pod_labels)]
    {
        let (findings, not_checked) = lint(more, policy);
        assert!(
            findings[0].starts_with("NP010 spec.podSelector: ") && not_checked.is_empty(),
            "{findings:?} {not_checked:?}"
        );
    }
}

#[test]
fn a_label_with_the_domain_of_a_controller_may_be_set_later() {
    let lint_key = |key: &str| lint("", &policy(&format!("matchLabels: {{{key}: x}}"), "ingress: []"));
    let reason = "NP010: no pod in the input has label acme.example.com/solver, which a controller may set";
    assert_eq!(lint_key("acme.example.com/solver"), (vec![], vec![reason.to_owned()]));
    // Reported: the key has no domain, or a domain that many applications use.
    for key in ["app", "app.kubernetes.io/name", "kubernetes.io/role"] {
        assert_eq!(lint_key(key).0.len(), 1, "{key}");
    }
    let other =
        "{apiVersion: v1, kind: Pod, metadata: {name: o, namespace: shop, labels: {example.com/tier: back}}}\n---\n";
    // Reported: another pod has a label with this key, or the key is probably a typo of such a key.
    for key in ["example.com/tier", "example.com/teir"] {
        assert_eq!(lint(other, &policy(&format!("matchLabels: {{{key}: x}}"), "ingress: []")).0.len(), 1, "{key}");
    }
}

#[test]
fn if_a_policy_selects_no_pods_the_finding_lists_pods_of_other_namespaces_with_the_labels() {
    let host = "{apiVersion: v1, kind: Pod, metadata: {name: node-0, namespace: shop, labels: {app: node}}, spec: {hostNetwork: true}}\n---\n";
    let (found, _) = lint(host, &policy("matchLabels: {app: node}", "ingress: []"));
    let expected = "NP010 spec.podSelector: podSelector app=node selects host-network pods only: shop/node-0. No policy applies to \
                    pods on the host network, so this policy has no effect. Fix: delete the policy, or run the pods without hostNetwork.";
    assert_eq!(found, [expected]);
    let elsewhere = "{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: data, labels: {app: db}}}\n---\n";
    let (found, _) = lint(elsewhere, &policy("matchLabels: {app: db}", "ingress: []"));
    let fix = "Fix: correct metadata.namespace, if the pods with these labels in data are the intended ones.";
    assert!(found.len() == 1 && found[0].ends_with(fix), "{found:?}");
}

#[test]
fn a_namespace_that_is_selected_by_name_may_be_defined_elsewhere() {
    let lint_peer = |more: &str, labels: &str| {
        let peer = format!("{{namespaceSelector: {{matchLabels: {{{labels}}}}}}}");
        lint(more, &policy("", &format!("ingress: [{{from: [{peer}]}}]")))
    };
    let by_name = "kubernetes.io/metadata.name: ingress-nginx";
    assert_eq!(lint_peer("", by_name), (vec![], vec!["NP022: namespace ingress-nginx is not in the input".to_owned()]));
    // Reported: the input has a whole cluster, the selector uses another label, or the name has a typo.
    for (more, labels) in
        [(WHOLE_CLUSTER, by_name), ("", "name: ingress-nginx"), ("", "kubernetes.io/metadata.name: shpo")]
    {
        let (found, not_checked) = lint_peer(more, labels);
        assert!(found.len() == 1 && found[0].starts_with("NP022 ") && not_checked.is_empty(), "{labels}: {found:?}");
    }
}

#[test]
fn a_selector_next_to_an_unknown_namespace_was_probably_intended_for_pods_of_that_namespace() {
    let peers = |namespaces: &str, labels: &str| {
        let namespaces = format!("{{namespaceSelector: {{matchLabels: {{{namespaces}}}}}}}");
        policy(
            "",
            &format!(
                "egress: [{{to: [{namespaces}, {{podSelector: {{matchLabels: {{{labels}}}}}}}]}}], policyTypes: [Egress]"
            ),
        )
    };
    let system = "kubernetes.io/metadata.name: kube-system";
    let (found, _) = lint("", &peers(system, "k8s-app: kube-dns"));
    assert!(
        found.len() == 1 && found[0].starts_with("NP024 spec.egress[0].to[1]: No pod matches the peer"),
        "{found:?}"
    );
    // No such finding in two cases. First, pods in the policy's own namespace have the labels. Second, the input has
    // pods of `kube-system`, and none of them has the labels.
    assert_eq!(lint("", &peers(system, "app: web")).0, [""; 0]);
    let dns =
        "{apiVersion: v1, kind: Pod, metadata: {name: dns, namespace: kube-system, labels: {k8s-app: dns}}}\n---\n";
    let (found, _) = lint(dns, &peers(system, "k8s-app: kube-dns"));
    assert!(found.len() == 1 && found[0].starts_with("NP020 "), "{found:?}");
}

#[test]
fn ports_of_pods_in_unknown_namespaces_are_not_checked() {
    let all = |port: &str| {
        policy(
            "",
            &format!(
                "egress: [{{to: [{{namespaceSelector: {{}}}}], ports: [{{port: {port}}}]}}], policyTypes: [Egress]"
            ),
        )
    };
    for port in ["53", "443, protocol: UDP", "8080"] {
        assert_eq!(lint("", &all(port)).0, [""; 0], "{port}");
    }
    assert_eq!(lint(WHOLE_CLUSTER, &all("53")).0.len(), 1);
    let expected = "NP031 spec.egress[0].ports[0].port: No container declares 443/TCP. A namespaceSelector selects pods only, and no \
                    address outside the cluster. Fix: to allow addresses outside the cluster, write the peer `ipBlock: {cidr: \
                    0.0.0.0/0}`.";
    assert_eq!(lint("", &all("443")).0, [expected]);
    // All declared ports are listed or counted.
    let many = "{apiVersion: v1, kind: Pod, metadata: {name: many, namespace: shop, labels: {app: many}}, spec: {containers: [{name: c, \
                ports: [{containerPort: 1}, {containerPort: 2}, {containerPort: 3}, {containerPort: 4}]}]}}\n---\n";
    let (found, _) = lint(many, &policy("matchLabels: {app: many}", "ingress: [{ports: [{port: 9}]}]"));
    assert!(found[0].contains("declare other ports: 1/TCP, 2/TCP, 3/TCP and 1 more port."), "{found:?}");
}

#[test]
fn an_item_without_a_port_probably_belongs_to_the_item_next_to_it() {
    let lint_ports = |ports: &str| {
        let rules = format!(
            "ingress: [{{from: [{{podSelector: {{}}}}], ports: [{ports}]}}, {{from: [{{podSelector: {{}}}}], ports: [{{port: 8080}}]}}]"
        );
        let findings = report(&format!("{SHOP}{}", policy("", &rules))).findings;
        let texts = findings.iter().filter(|it| [RuleId::SPLIT_PORT, RuleId::SHADOWED_RULE].contains(&it.rule));
        texts.map(|it| format!("{} {}", it.path.clone().unwrap_or_default(), it.text())).collect::<Vec<_>>()
    };
    let joined = "Fix: write `port` and `protocol` in one item, without the second `-`.";
    let expected = |item: usize, other: usize, protocol: &str| {
        vec![format!(
            "spec.ingress[0].ports[{item}] The item has no port, so it allows all {protocol} ports. spec.ingress[0].ports[{other}] is \
             another item, which has the port. Two list items are alternatives. {joined}"
        )]
    };
    assert_eq!(lint_ports("{port: 8080}, {protocol: TCP}"), expected(1, 0, "TCP"));
    assert_eq!(lint_ports("{protocol: UDP}, {port: 53}"), expected(0, 1, "UDP"));
    let useless = lint_ports("{port: 8080, protocol: TCP}, {}");
    assert!(useless.len() == 1 && useless[0].contains("spec.ingress[0].ports[0] has no effect."), "{useless:?}");
    // If the item without a port is the only item of its rule, it is not reported. But the second rule of the policy
    // (port 8080) is reported: it has no effect, because the first rule allows all TCP ports.
    assert_eq!(lint_ports("{protocol: TCP}").len(), 1);
    assert_eq!(lint_ports("{port: 53, protocol: UDP}, {protocol: SCTP}"), [""; 0]);
}

#[test]
fn an_empty_list_of_peers_in_a_rule_with_ports_is_information_only() {
    let lint_rule = |rule: &str| {
        let findings = report(&format!("{SHOP}{}", policy("", &format!("ingress: [{rule}]")))).findings.into_iter();
        let found = findings.filter(|it| it.rule == RuleId::EMPTY_PEER_LIST);
        found.map(|it| (it.severity.name(), it.fix.expect("a fix").description)).collect::<Vec<_>>()
    };
    let [omit_list, remove_or_omit] = [
        "omit `from` if every address is intended; otherwise add peers",
        "to allow no address, remove the rule; to allow every address, omit `from`",
    ];
    assert_eq!(lint_rule("{from: [], ports: [{port: 8080}]}"), [("info", omit_list.to_owned())]);
    let text = |rule: &str| report(&format!("{SHOP}{}", policy("", &format!("ingress: [{rule}]")))).findings[0].text();
    assert!(text("{from: null}").starts_with("`from` is null."), "{}", text("{from: null}"));
    for rule in ["{from: []}", "{from: null}", "{from: [], ports: []}"] {
        assert_eq!(lint_rule(rule), [("warning", remove_or_omit.to_owned())], "{rule}");
    }
}

#[test]
fn a_placeholder_is_not_the_name_of_a_namespace() {
    for name in ["YOUR_NAMESPACE", "${NAMESPACE}"] {
        let text = policy("", "ingress: []").replace("namespace: shop", &format!("namespace: \"{name}\""));
        let errors = crate::manifest::parse_offline(&text, "f").errors;
        let found: Vec<_> = errors.iter().map(|it| (it.rule, it.field.as_deref())).collect();
        assert_eq!(found, [(RuleId::INVALID_POLICY, Some("metadata.namespace"))], "{errors:?}");
    }
}

#[test]
fn pods_without_any_rule_for_dns_are_listed_as_information() {
    let lint_rules = |rules: &str| {
        let text = policy("", &format!("policyTypes: [Egress], egress: [{rules}]"));
        let findings = report(&format!("{SHOP}{text}")).findings.into_iter();
        let found = findings.filter(|finding| finding.rule == RuleId::DNS_DENIED);
        found.map(|finding| (finding.severity.name(), finding.message)).collect::<Vec<_>>()
    };
    let web = "{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}";
    let message = "No rule allows pod shop/web to reach port 53 of any address.".to_owned();
    assert_eq!(lint_rules(web), [("info", message.clone())]);
    // DNS does not use SCTP.
    let sctp = "{ports: [{port: 53, protocol: SCTP}]}";
    assert_eq!(lint_rules(&format!("{web}, {sctp}")), [("info", message)]);
    for dns in
        ["{ports: [{port: 53, protocol: UDP}]}", "{ports: [{port: dns, protocol: UDP}]}", "{to: [{podSelector: {}}]}"]
    {
        assert_eq!(lint_rules(&format!("{web}, {dns}")), [], "{dns}");
    }
    // A pod without rules for other pods probably needs no DNS names.
    for rules in ["", "{to: [{ipBlock: {cidr: 192.0.2.1/32}}], ports: [{port: 443}]}"] {
        assert_eq!(lint_rules(rules), [], "{rules}");
    }
}
