//! Findings about DNS, Services, port names and the API server.

use super::Finding;
use crate::cluster_state::ClusterState;
use crate::manifest;
use crate::model::PodKey;

/// Pod `shop/web` is the client. Service `shop/db`, 80 → 5432, has the backends `db-0` and `db-1`. The cluster DNS is
/// `kube-system/kube-dns`, 53 → 5353. The API server is a host-network pod.
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
/// Allows DNS.
const DNS: &str = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, \
                   podSelector: {matchLabels: {k8s-app: kube-dns}}}], \
                   ports: [{port: 5353, protocol: UDP}, {port: 5353, protocol: TCP}]}";

/// The findings of these policies, as `policy field: message`.
fn lint(policies: &[String]) -> Vec<String> {
    let parsed = manifest::parse(&format!("{CLUSTER}{}", policies.join("\n---\n")), "f");
    assert_eq!(parsed.errors, []);
    let cluster_state = ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object));
    assert!(cluster_state.pods.contains_key(&PodKey::new("shop", "web")));
    super::lint(&cluster_state).iter().map(text).collect()
}

fn text(finding: &Finding) -> String {
    format!("{} {}: {}", finding.policy, finding.field, finding.message())
}

/// An egress policy for `shop/web`.
fn egress(name: &str, rules: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rules}]}}}}"
    )
}

/// The same, and a policy that allows DNS.
fn with_dns(rules: &str) -> Vec<String> {
    vec![egress("p", rules), egress("dns", DNS)]
}

#[test]
fn a_policy_that_denies_dns_is_reported_with_a_rule_that_allows_it() {
    let message = "shop/p spec.egress: No rule allows pod shop/web to reach the cluster DNS, Service kube-system/kube-dns, at \
                   PORTS. The pod cannot resolve DNS names. Fix: add to spec.egress of NetworkPolicy shop/p: {to: \
                   [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: \
                   {k8s-app: kube-dns}}}], ports: [{port: 5353, protocol: TCP}, {port: 5353, protocol: UDP}]}";
    let both = message.replace("PORTS", "5353/TCP and 5353/UDP");
    assert_eq!(lint(&[egress("p", "")]), std::slice::from_ref(&both));
    // The second policy of the same pod has no finding of its own.
    assert_eq!(lint(&[egress("p", ""), egress("q", "")]), [both]);
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
    assert_eq!(lint(&with_dns("")), [""; 0]);
    let ingress = egress("p", "").replace("[Egress], egress: []", "[Ingress]");
    assert_eq!(lint(&[ingress]), [""; 0]);
}

#[test]
fn the_port_of_the_dns_service_is_not_that_of_its_pods() {
    let of_service = DNS.replace("5353", "53");
    let found = lint(&[egress("p", &of_service)]);
    assert_eq!(found.len(), 2, "{found:?}");
    let expected = "shop/p spec.egress[0].ports: 53/TCP is the port of Service kube-system/kube-dns. Policies match the port of \
                    its backends, 5353/TCP, so this rule does not allow it.";
    let of_udp = expected.replace("TCP", "UDP");
    assert!(found.iter().any(|text| text.starts_with(expected) || text.starts_with(&of_udp)), "{found:?}");
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
    // The range of all Services: those that the pod cannot reach are listed. The other policy allows DNS.
    let found = lint(&with_dns("{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}"));
    let expected = "10.96.0.0/12 contains addresses of Services default/kubernetes, shop/db.";
    assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
}

#[test]
fn other_blocks_are_not_reported() {
    for rules in [
        "{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}]}",
        "{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}",
        "{to: [{ipBlock: {cidr: 10.96.0.0/12, except: [10.96.0.0/24]}}]}",
        "{to: [{ipBlock: {cidr: 10.96.0.7/32}}], ports: [{port: 443}]}",
        // For other network plugins, in addition to a selector.
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
fn the_api_server_is_a_host_network_pod_and_not_a_peer() {
    let by_address = lint(&with_dns("{to: [{ipBlock: {cidr: 10.96.0.1/32}}], ports: [{port: 443}]}"));
    let fix = "{to: [{ipBlock: {cidr: 192.0.2.1/32}}], ports: [{port: 6443, protocol: TCP}]}";
    assert!(by_address.len() == 1 && by_address[0].ends_with(fix), "{by_address:?}");
    let by_labels = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, \
                     podSelector: {matchLabels: {component: kube-apiserver}}}], ports: [{port: 6443}]}";
    assert_eq!(
        lint(&with_dns(by_labels)),
        [format!(
            "shop/p spec.egress[0].to[0]: The selector matches host-network pods only (pods with component=kube-apiserver in \
             namespaces with kubernetes.io/metadata.name=kube-system): kube-system/api. Host-network pods are not peers: a \
             selector never matches the address of a node. Fix: add to spec.egress of NetworkPolicy shop/p: {fix}"
        )]
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
        let parsed = manifest::parse(&format!("{CLUSTER}{pods}{}", policies.join("\n---\n")), "f");
        assert_eq!(parsed.errors, []);
        let cluster_state = ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object));
        let found: Vec<String> =
            super::lint(&cluster_state).iter().map(|found| format!("{}: {}", found.field, found.message())).collect();
        assert_eq!(found, expected, "{rule}");
    };
    let pod = "{podSelector: {matchLabels: {app: named}}}";
    let outside = "spec.egress[0].ports: No pod in 203.0.113.0/24 has a port with the name \"web\". Port names are resolved on pods, \
                   so the name matches no port there. Fix: write the port number.";
    let other = "spec.egress[0].ports: Port \"query\" of pod shop/named is 53/UDP, but the rule uses it with TCP. The name matches \
                 no port. Fix: write `protocol: UDP`, or add the name to a TCP port of the pod.";
    check(&format!("{{to: [{pod}], ports: [{{port: web}}]}}"), &[]);
    check(&format!("{{to: [{pod}, {{ipBlock: {{cidr: 203.0.113.0/24}}}}], ports: [{{port: web}}]}}"), &[outside]);
    check("{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: web}, {port: 80}]}", &[outside]);
    check("{to: [{ipBlock: {cidr: 10.1.0.0/24}}], ports: [{port: web}]}", &[]);
    check(
        "{to: [{ipBlock: {cidr: 10.1.0.0/24, except: [10.1.0.20/32]}}], ports: [{port: web}]}",
        &[&outside.replace("203.0.113.0/24", "10.1.0.0/24")],
    );
    check(&format!("{{to: [{pod}], ports: [{{port: query}}]}}"), &[other]);
    check(&format!("{{to: [{pod}], ports: [{{port: query, protocol: UDP}}]}}"), &[]);
    check(
        &format!("{{to: [{pod}], ports: [{{port: nothing}}]}}"),
        &[
            "spec.egress[0].ports: No pod has a port with the name \"nothing\". The name matches no port. Fix: check the name, or \
             write the port number.",
        ],
    );
    // In an ingress rule, port names are resolved on the selected pods.
    let ingress = egress("p", "").replace(
        "[Egress], egress: []",
        "[Ingress], ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: web}]}]",
    );
    let of_n = ingress.replace("app: web", "app: named");
    let parsed = manifest::parse(&format!("{CLUSTER}{pods}{of_n}"), "f");
    assert_eq!(super::lint(&ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object))), []);
}

#[test]
fn s42_policies_that_are_not_enforced_are_listed_as_information() {
    let shadow =
        egress("p", "{}").replace("namespace: shop}", "namespace: shop, annotations: {netpol.io/mode: shadow}}");
    let parsed = manifest::parse(&format!("{CLUSTER}{shadow}"), "f");
    let cluster_state = ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object));
    let findings = super::lint(&cluster_state);
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(finding.severity, crate::model::Severity::Info);
    let expected = "shop/p metadata.annotations.netpol.io/mode: The policy is in shadow mode. It is not enforced; netpol reports \
                    what it would deny.";
    assert_eq!(text(finding), expected);
}
