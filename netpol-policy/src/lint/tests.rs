//! Tests of lint findings about DNS, Services, port names, the API server, annotations and redundant policies.
//! sNN in the name of a test is an item of docs/semantics.md.

mod incomplete;

use super::{Report, RuleId, Selection};
use crate::manifest;
use crate::model::Severity;
use crate::offline::OfflineCluster;

/// Pod `shop/web` is the client. Service `shop/db` (port 80, target port 5432) has the backends `db-0` and `db-1`. The
/// cluster DNS is Service `kube-system/kube-dns` (port 53, target port 5353). The API server is a host-network pod, the
/// backend of Service `default/kubernetes` (port 443, target port 6443). Because of the Namespace `kube-system`, the
/// input counts as a whole cluster.
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop, labels: {app: db}}, status: {podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-1, namespace: shop, labels: {app: db}}, status: {podIP: 10.1.0.3}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-x1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2]}, {addresses: [10.1.0.3]}]
ports: [{port: 5432}]
---
{apiVersion: v1, kind: Pod, metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}, status: {podIP: 10.1.0.9}}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-x1, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.9]}]
ports: [{name: udp, port: 5353, protocol: UDP}, {name: tcp, port: 5353}]
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: kube-system, labels: {component: kube-apiserver}}
spec: {hostNetwork: true}
status: {podIP: 192.0.2.1}
---
{apiVersion: v1, kind: Service, metadata: {name: kubernetes, namespace: default}, spec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.1]}]
ports: [{port: 6443}]
---
";
/// An egress rule that allows DNS.
const DNS: &str = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, \
                   podSelector: {matchLabels: {k8s-app: kube-dns}}}], \
                   ports: [{port: 5353, protocol: UDP}, {port: 5353, protocol: TCP}]}";

/// Returns the warnings about these policies in [`CLUSTER`], each as `policy path: text`.
fn lint(policies: &[String]) -> Vec<String> {
    warnings(&format!("{CLUSTER}{}", policies.join("\n---\n")))
}

/// Returns the warnings about these manifests, each in the form that [`lint`] describes.
fn warnings(text: &str) -> Vec<String> {
    let findings = report(text).findings.into_iter().filter(|finding| finding.severity == Severity::Warning);
    let texts = findings.map(|finding| {
        let object = finding.object.as_deref().unwrap_or_default().trim_start_matches("NetworkPolicy ");
        format!("{object} {}: {}", finding.path.as_deref().unwrap_or_default(), finding.text())
    });
    texts.collect()
}

/// Checks these manifests by all lint rules.
fn report(text: &str) -> Report {
    let parsed = manifest::parse_offline(text, "f");
    assert_eq!(parsed.errors, []);
    super::lint(&parsed, &[], &OfflineCluster::new(&parsed, &[]), &Selection::default())
}

/// Returns an egress policy for `shop/web`.
fn egress(name: &str, rules: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rules}]}}}}"
    )
}

/// Returns an egress policy with these rules, and another policy that allows DNS.
fn with_dns(rules: &str) -> Vec<String> {
    vec![egress("p", rules), egress("dns", DNS)]
}

#[test]
fn a_policy_that_denies_dns_is_reported_with_a_rule_that_allows_it() {
    let message = "shop/p spec.egress: No rule allows pod shop/web to reach the cluster DNS, Service kube-system/kube-dns, at \
                   PORTS. The pod cannot resolve DNS names. Fix: add to spec.egress of NetworkPolicy shop/p: {to: \
                   [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: \
                   {k8s-app: kube-dns}}}], ports: [{port: 5353, protocol: TCP}, {port: 5353, protocol: UDP}]}";
    let both_ports = message.replace("PORTS", "5353/TCP and 5353/UDP");
    assert_eq!(lint(&[egress("p", "")]), std::slice::from_ref(&both_ports));
    // If several policies isolate a pod, only the first one gets the finding.
    assert_eq!(lint(&[egress("p", ""), egress("q", "")]), [both_ports]);
    let udp_only = DNS.replace(", {port: 5353, protocol: TCP}", "");
    assert_eq!(lint(&[egress("p", &udp_only)]), [message.replace("PORTS", "5353/TCP")]);
}

#[test]
fn pods_that_can_reach_dns_are_not_reported() {
    for rules in
        [DNS, "{}", "{ports: [{port: 5353, protocol: UDP}, {port: 5353}]}", "{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}"]
    {
        assert_eq!(lint(&[egress("p", rules)]), [""; 0], "{rules}");
    }
    assert_eq!(lint(&with_dns("")), [""; 0], "another policy allows DNS");
    let ingress = egress("p", "").replace("[Egress], egress: []", "[Ingress]");
    assert_eq!(lint(&[ingress]), [""; 0], "no policy isolates the pod for egress");
}

#[test]
fn the_port_of_the_dns_service_is_reported_if_the_dns_pods_have_another_port() {
    let rule_with_service_port = DNS.replace("5353", "53");
    let found = lint(&[egress("p", &rule_with_service_port)]);
    assert_eq!(found.len(), 2, "a finding about the port, and one about DNS: {found:?}");
    let expected = "shop/p spec.egress[0].ports: 53/TCP is the port of Service kube-system/kube-dns. Policies match the port of \
                    its backends, 5353/TCP, so this rule does not allow it.";
    // The finding about the port contains 53/TCP or 53/UDP, not both.
    let expected_udp = expected.replace("TCP", "UDP");
    assert!(found.iter().any(|text| text.starts_with(expected) || text.starts_with(&expected_udp)), "{found:?}");
}

#[test]
fn a_block_with_the_address_of_a_service_is_reported() {
    let fix = "Fix: add to spec.egress of NetworkPolicy shop/p: {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: \
               5432, protocol: TCP}]}";
    assert_eq!(
        lint(&with_dns("{to: [{ipBlock: {cidr: 10.96.0.7/32}}], ports: [{port: 80}]}")),
        [format!(
            "shop/p spec.egress[0].to[0].ipBlock: 10.96.0.7/32 contains the address of Service shop/db. Policies match the \
             addresses of a Service's backends, so this block does not allow it. {fix}"
        )]
    );
    // This block contains the addresses of all Services. The message does not list the cluster DNS, because another
    // policy allows the pod to reach it.
    let found = lint(&with_dns("{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}"));
    let expected = "10.96.0.0/12 contains addresses of Services default/kubernetes, shop/db.";
    assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
}

#[test]
fn blocks_that_were_probably_not_written_for_a_service_are_not_reported() {
    for rules in [
        "{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}]}",
        // The block contains addresses of pods, too.
        "{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}",
        // The block contains no address of a Service, because of `except`.
        "{to: [{ipBlock: {cidr: 10.96.0.0/12, except: [10.96.0.0/24]}}]}",
        // The Service has no port 443.
        "{to: [{ipBlock: {cidr: 10.96.0.7/32}}], ports: [{port: 443}]}",
        // Other network plugins may need the address of the Service, in addition to a selector for its backends.
        "{to: [{ipBlock: {cidr: 10.96.0.7/32}}]}, {to: [{podSelector: {matchLabels: {app: db}}}]}",
    ] {
        assert_eq!(lint(&with_dns(rules)), [""; 0], "{rules}");
    }
}

#[test]
fn the_port_of_a_service_in_a_rule_for_its_backends_is_reported() {
    let rule = |ports: &str| format!("{{to: [{{podSelector: {{matchLabels: {{app: db}}}}}}], ports: [{ports}]}}");
    assert_eq!(
        lint(&with_dns(&rule("{port: 80}"))),
        [
            "shop/p spec.egress[0].ports: 80/TCP is the port of Service shop/db. Policies match the port of its backends, \
             5432/TCP, so this rule does not allow it. Fix: replace spec.egress[0] of NetworkPolicy shop/p with: {to: \
             [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80, protocol: TCP}, {port: 5432, protocol: TCP}]}"
        ]
    );
    for ports in ["{port: 80}, {port: 5432}", "{port: 5432}", "{port: 80, protocol: UDP}", "{port: 81}"] {
        assert_eq!(lint(&with_dns(&rule(ports))), [""; 0], "{ports}");
    }
}

#[test]
fn rules_for_the_api_server_by_service_address_or_by_labels_are_reported() {
    let by_address = lint(&with_dns("{to: [{ipBlock: {cidr: 10.96.0.1/32}}], ports: [{port: 443}]}"));
    let fix = "{to: [{ipBlock: {cidr: 192.0.2.1/32}}], ports: [{port: 6443, protocol: TCP}]}";
    assert!(by_address.len() == 1 && by_address[0].ends_with(fix), "{by_address:?}");
    let by_labels = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, \
                     podSelector: {matchLabels: {component: kube-apiserver}}}], ports: [{port: 6443}]}";
    assert_eq!(
        lint(&with_dns(by_labels)),
        [
            "shop/p spec.egress[0].to[0]: The selector matches host-network pods only (pods with component=kube-apiserver in \
             namespaces with kubernetes.io/metadata.name=kube-system): kube-system/api. Host-network pods are not peers: a \
             selector never matches the address of a node. Fix: replace the peer with the addresses of their nodes, \
             {ipBlock: {cidr: 192.0.2.1/32}}."
        ]
    );
    assert_eq!(lint(&with_dns("{to: [{ipBlock: {cidr: 192.0.2.1/32}}], ports: [{port: 6443}]}")), [""; 0]);
}

#[test]
fn a_port_name_that_no_pod_has_is_reported() {
    let pods = "---\n{apiVersion: v1, kind: Pod, metadata: {name: named, namespace: shop, labels: {app: named}}, spec: {containers: \
                [{name: c, ports: [{name: web, containerPort: 80}, {name: query, containerPort: 53, protocol: UDP}]}]}, \
                status: {podIP: 10.1.0.20}}\n---\n";
    let check = |rule: &str, expected: &[&str]| {
        let policies = with_dns(rule);
        let found = warnings(&format!("{CLUSTER}{pods}{}", policies.join("\n---\n")));
        let found: Vec<&str> = found.iter().map(|text| text.trim_start_matches("shop/p ")).collect();
        assert_eq!(found, expected, "{rule}");
    };
    let pod = "{podSelector: {matchLabels: {app: named}}}";
    let not_in_block = "spec.egress[0].ports[0].port: No pod in 203.0.113.0/24 has a port with the name \"web\". Port names are resolved on pods, \
                   so the name matches no port there. Fix: write the port number.";
    let other_protocol = "spec.egress[0].ports[0].port: Port \"query\" of pod shop/named is 53/UDP, but the rule uses it with TCP. The name matches \
                 no port. Fix: write `protocol: UDP`, or add the name to a TCP port of the pod.";
    check(&format!("{{to: [{pod}], ports: [{{port: web}}]}}"), &[]);
    check(&format!("{{to: [{pod}, {{ipBlock: {{cidr: 203.0.113.0/24}}}}], ports: [{{port: web}}]}}"), &[not_in_block]);
    check("{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: web}, {port: 80}]}", &[not_in_block]);
    check("{to: [{ipBlock: {cidr: 10.1.0.0/16}}], ports: [{port: web}]}", &[]);
    check(
        "{to: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.0.20/32]}}], ports: [{port: web}]}",
        &[&not_in_block.replace("203.0.113.0/24", "10.1.0.0/16")],
    );
    check(&format!("{{to: [{pod}], ports: [{{port: query}}]}}"), &[other_protocol]);
    check(&format!("{{to: [{pod}], ports: [{{port: query, protocol: UDP}}]}}"), &[]);
    check(
        &format!("{{to: [{pod}], ports: [{{port: nothing}}]}}"),
        &[
            "spec.egress[0].ports[0].port: No pod that the rule selects has a port with the name \"nothing\". The name matches no port. Fix: check the name, or \
             write the port number.",
        ],
    );
    // In an ingress rule, port names are resolved on the selected pods.
    let ingress = egress("p", "").replace(
        "[Egress], egress: []",
        "[Ingress], ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: web}]}]",
    );
    let for_named_pod = ingress.replace("app: web", "app: named");
    assert_eq!(warnings(&format!("{CLUSTER}{pods}{for_named_pod}")), [""; 0]);
}

/// Returns the report about a pod, a policy and a namespace. `policy` and `namespace` are the values of their
/// annotations `netpol.io/lint-ignore`. Lint rule NP020 has a finding about the policy's peer at line 8: no pod has the
/// label `app=wbe`.
fn annotated(policy: &str, namespace: &str) -> Report {
    report(&format!(
        "\
{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{netpol.io/lint-ignore: '{namespace}'}}}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: shop, labels: {{app: web}}}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: shop, annotations: {{netpol.io/lint-ignore: '{policy}'}}}}
spec: {{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: wbe}}}}}}]}}]}}
"
    ))
}

#[test]
fn an_annotation_with_a_reason_suppresses_findings() {
    let ids = |report: &Report| report.findings.iter().map(|finding| finding.rule).collect::<Vec<_>>();
    let (peer, invalid) = (RuleId::PEER_MATCHES_NO_POD, RuleId::INVALID_SUPPRESSION);
    assert_eq!(ids(&annotated("", "")), [peer]);
    for (policy, namespace) in [("NP041: a; NP020: the pods come later", ""), ("", "NP020: the pods come later")] {
        let report = annotated(policy, namespace);
        assert_eq!((ids(&report), report.suppressed.len()), (Vec::new(), 1));
        assert_eq!(report.suppressed[0].reason, "the pods come later");
        assert_eq!((report.suppressed[0].finding.rule, report.suppressed[0].finding.line), (peer, 8));
    }
    for (text, message) in [
        ("NP020", "The suppression of NP020 has no reason."),
        ("NP020: ", "The suppression of NP020 has no reason."),
        ("NP999: x", "`NP999` is not a rule of netpol lint."),
        ("NP003: x", "Findings of NP003 cannot be suppressed."),
    ] {
        for (policy, namespace, line) in [(text, "", 7), ("", text, 1)] {
            let report = annotated(policy, namespace);
            assert!(report.suppressed.is_empty(), "{text}");
            let mut found = report.findings.iter().filter(|finding| finding.rule == invalid);
            let first = found.next().expect("a finding about the annotation");
            assert_eq!((&*first.message, first.line, ids(&report).contains(&peer)), (message, line, true));
        }
    }
}

#[test]
fn lint_rules_that_cannot_be_checked_are_listed_with_a_reason() {
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {podSelector: \
                  {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {a: b}}}]}]}}\n";
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, spec: {serviceAccountName: web, containers: []}}\n";
    let not_checked = |text: &str| {
        let report = report(text);
        report.not_checked.iter().map(|it| format!("{}: {}", it.rule, it.reason)).collect::<Vec<_>>()
    };
    let no_namespace = ["NP011", "NP022"].map(|rule| format!("{rule}: the input has no Namespace"));
    assert_eq!(
        not_checked(policy),
        ["NP010: the input has no pods and no workloads".to_owned(), no_namespace[0].clone()]
    );
    assert_eq!(
        not_checked(&format!("{policy}{pod}")),
        [
            &no_namespace[..],
            &[
                "NP050: no Service with backends at port 53 is known in kube-system".to_owned(),
                "NP051: the backends of Service default/kubernetes are not known".to_owned(),
            ]
        ]
        .concat()
    );
}

#[test]
fn only_findings_of_selected_lint_rules_are_reported() {
    let text = format!("{CLUSTER}{}", egress("p", ""));
    let parsed = manifest::parse_offline(&text, "f");
    let findings = |only: &[RuleId], skip: &[RuleId]| {
        let selection = Selection { only: only.iter().copied().collect(), skip: skip.iter().copied().collect() };
        super::lint(&parsed, &[], &OfflineCluster::new(&parsed, &[]), &selection).findings
    };
    assert!(findings(&[], &[]).len() > 1);
    assert_eq!(findings(&[RuleId::DNS_DENIED], &[]).len(), 1);
    assert_eq!(findings(&[], &[RuleId::DNS_DENIED]).len() + 1, findings(&[], &[]).len());
    assert_eq!(findings(&[RuleId::DNS_DENIED], &[RuleId::DNS_DENIED]), []);
}

#[test]
fn of_equal_policies_and_rules_the_first_one_is_not_reported() {
    let web = |name: &str, rules: &str| egress(name, rules);
    // Returns only the findings about policies and rules without an effect (NP072 and NP073).
    let findings = |policies: &[String]| {
        let findings = report(&format!("{CLUSTER}{}", policies.join("\n---\n"))).findings.into_iter();
        let found = findings.filter(|finding| finding.rule >= RuleId::POLICY_CHANGES_NOTHING);
        found
            .map(|finding| format!("{} {} {}", finding.rule, finding.object.unwrap(), finding.path.unwrap()))
            .collect::<Vec<_>>()
    };
    let (wide, narrow) = ("{to: [{podSelector: {}}]}", "{to: [{podSelector: {matchLabels: {app: db}}}]}");
    assert_eq!(findings(&[web("a", wide), web("b", wide)]), ["NP072 NetworkPolicy shop/b spec"]);
    assert_eq!(findings(&[web("a", narrow), web("b", wide)]), ["NP072 NetworkPolicy shop/a spec"]);
    assert_eq!(
        findings(&[web("a", wide), web("b", &format!("{narrow}, {{to: [{{namespaceSelector: {{}}}}]}}"))]),
        ["NP072 NetworkPolicy shop/a spec", "NP073 NetworkPolicy shop/b spec.egress[0]"]
    );
    assert_eq!(findings(&[web("a", &format!("{wide}, {wide}"))]), ["NP073 NetworkPolicy shop/a spec.egress[1]"]);
    // A policy that allows everything has no effect.
    assert_eq!(findings(&[web("a", "{}")]), ["NP072 NetworkPolicy shop/a spec"]);
    assert_eq!(findings(&[web("a", "{}"), web("b", narrow)]), ["NP072 NetworkPolicy shop/b spec"]);
}

#[test]
fn s42_policies_that_are_not_enforced_are_listed_as_information() {
    let shadow =
        egress("p", "{}").replace("namespace: shop}", "namespace: shop, annotations: {netpol.io/mode: shadow}}");
    let findings = report(&format!("{CLUSTER}{shadow}")).findings.into_iter();
    let found: Vec<_> = findings.filter(|finding| finding.rule == RuleId::NOT_ENFORCED).collect();
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (finding.severity, finding.path.as_deref()),
        (Severity::Info, Some("metadata.annotations.netpol.io/mode"))
    );
    let expected = "The policy is in shadow mode. It is not enforced; netpol reports what it would deny. Fix: remove the \
                    annotation to enforce the policy.";
    assert_eq!(finding.text(), expected);
}
