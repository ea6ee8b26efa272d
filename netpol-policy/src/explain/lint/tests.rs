//! What of Services is told, and what is not.

use crate::manifest;
use crate::model::PodKey;
use crate::world::World;

/// `shop/web` connects; Service `shop/db`, 80 → 5432, has the pods `db-0` and `db-1` behind it; the cluster's DNS is
/// `kube-system/kube-dns`, 53 → 5353; the API server runs on the network of node n1.
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
/// Lets DNS through.
const DNS: &str = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, \
                   podSelector: {matchLabels: {k8s-app: kube-dns}}}], \
                   ports: [{port: 5353, protocol: UDP}, {port: 5353, protocol: TCP}]}";

/// What is told of these policies.
fn lint(policies: &[String]) -> Vec<String> {
    let parsed = manifest::parse(&format!("{CLUSTER}{}", policies.join("\n---\n")), "f");
    assert_eq!(parsed.errors, []);
    let world = World::of(parsed.objects.into_iter().map(|located| located.object));
    assert!(world.pods.contains_key(&PodKey::new("shop", "web")));
    super::lint(&world).into_iter().map(|(policy, problem)| format!("{policy} {problem}")).collect()
}

/// An egress policy on `shop/web`.
fn egress(name: &str, rules: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rules}]}}}}"
    )
}

/// The same, DNS let through.
fn with_dns(rules: &str) -> Vec<String> {
    vec![egress("p", rules), egress("dns", DNS)]
}

#[test]
fn who_cannot_reach_the_clusters_dns_is_told_with_the_rule_that_would_let_it() {
    let said = "shop/p spec.egress: isolates shop/web for egress, and no rule lets it reach the cluster's DNS, Service \
                kube-system/kube-dns, at PORTS: names do not resolve there. A rule that does: {to: [{namespaceSelector: \
                {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], \
                ports: [{port: 5353, protocol: TCP}, {port: 5353, protocol: UDP}]}";
    let both = said.replace("PORTS", "5353/TCP and 5353/UDP");
    assert_eq!(lint(&[egress("p", "")]), std::slice::from_ref(&both));
    // The second policy of the same pod says nothing of its own.
    assert_eq!(lint(&[egress("p", ""), egress("q", "")]), [both]);
    let udp_only = DNS.replace(", {port: 5353, protocol: TCP}", "");
    assert_eq!(lint(&[egress("p", &udp_only)]), [said.replace("PORTS", "5353/TCP")]);
}

#[test]
fn who_reaches_the_dns_by_any_policy_is_not_told() {
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
fn the_dns_services_own_port_is_not_its_pods() {
    let of_service = DNS.replace("5353", "53");
    let said = lint(&[egress("p", &of_service)]);
    assert_eq!(said.len(), 2, "{said:?}");
    let wanted = "spec.egress[0].ports: 53/TCP is the port of Service kube-system/kube-dns; policies see the port of the pods \
                  behind it: write 5353/TCP";
    assert!(
        said.iter().any(|text| text.ends_with(wanted) || text.ends_with(&wanted.replace("TCP", "UDP"))),
        "{said:?}"
    );
}

#[test]
fn a_block_with_a_services_address_allows_nothing_there() {
    let rule = "A rule that does: {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, podSelector: \
                {matchLabels: {app: db}}}], ports: [{port: 5432, protocol: TCP}]}";
    assert_eq!(
        lint(&with_dns("{to: [{ipBlock: {cidr: 10.96.0.7/32}}], ports: [{port: 80}]}")),
        [format!(
            "shop/p spec.egress[0].to: 10.96.0.7/32 has the address of Service shop/db, and allows nothing there: policies are \
             judged by who is behind a Service. {rule}"
        )]
    );
    // The Services' range names all that are not reached: DNS is, by the other policy.
    let said = lint(&with_dns("{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}"));
    assert!(
        said.len() == 1 && said[0].contains("has addresses of Services default/kubernetes, shop/db, and"),
        "{said:?}"
    );
}

#[test]
fn blocks_that_mean_something_else_are_not_told() {
    for rules in [
        "{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}]}",
        "{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}",
        "{to: [{ipBlock: {cidr: 10.96.0.0/12, except: [10.96.0.0/24]}}]}",
        "{to: [{ipBlock: {cidr: 10.96.0.7/32}}], ports: [{port: 443}]}",
        // For other network plugins, beside what counts here.
        "{to: [{ipBlock: {cidr: 10.96.0.7/32}}]}, {to: [{podSelector: {matchLabels: {app: db}}}]}",
    ] {
        assert_eq!(lint(&with_dns(rules)), [""; 0], "{rules}");
    }
}

#[test]
fn a_services_port_in_a_rule_for_who_is_behind_it_is_told() {
    let rule = |ports: &str| format!("{{to: [{{podSelector: {{matchLabels: {{app: db}}}}}}], ports: [{ports}]}}");
    assert_eq!(
        lint(&with_dns(&rule("{port: 80}"))),
        [
            "shop/p spec.egress[0].ports: 80/TCP is the port of Service shop/db; policies see the port of the pods behind it: \
             write 5432/TCP"
        ]
    );
    for ports in ["{port: 80}, {port: 5432}", "{port: 5432}", "{port: 80, protocol: UDP}", "{port: 81}"] {
        assert_eq!(lint(&with_dns(&rule(ports))), [""; 0], "{ports}");
    }
}

#[test]
fn the_api_server_is_no_pod_and_has_its_nodes_address() {
    let by_address = lint(&with_dns("{to: [{ipBlock: {cidr: 10.96.0.1/32}}], ports: [{port: 443}]}"));
    let said = "A rule that does: {to: [{ipBlock: {cidr: 192.0.2.1/32}}], ports: [{port: 6443, protocol: TCP}]}";
    assert!(by_address.len() == 1 && by_address[0].ends_with(said), "{by_address:?}");
    let by_labels = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, \
                     podSelector: {matchLabels: {component: kube-apiserver}}}], ports: [{port: 6443}]}";
    assert_eq!(
        lint(&with_dns(by_labels)),
        ["shop/p spec.egress[0].to: pods with component=kube-apiserver of namespaces with \
             kubernetes.io/metadata.name=kube-system are kube-system/api alone, of the node's own network: such pods are no peers. \
             Write [{ipBlock: {cidr: 192.0.2.1/32}}]"]
    );
    assert_eq!(lint(&with_dns("{to: [{ipBlock: {cidr: 192.0.2.1/32}}], ports: [{port: 6443}]}")), [""; 0]);
}

#[test]
fn a_port_name_that_resolves_nowhere_is_reported() {
    let pods = "---\n{apiVersion: v1, kind: Pod, metadata: {name: named, namespace: shop, labels: {app: named}}, spec: {containers: \
                [{name: c, ports: [{name: web, containerPort: 80}, {name: query, containerPort: 53, protocol: UDP}]}]}, \
                status: {podIP: 10.1.0.20}}\n---\n";
    let check = |rule: &str, expected: &[&str]| {
        let policies = with_dns(rule);
        let parsed = manifest::parse(&format!("{CLUSTER}{pods}{}", policies.join("\n---\n")), "f");
        assert_eq!(parsed.errors, []);
        let world = World::of(parsed.objects.into_iter().map(|located| located.object));
        let said: Vec<String> = super::lint(&world).into_iter().map(|(_, problem)| problem.to_string()).collect();
        assert_eq!(said, expected, "{rule}");
    };
    let pod = "{podSelector: {matchLabels: {app: named}}}";
    let outside = "spec.egress[0].ports: port name \"web\" is looked up on pods, and no pod in 203.0.113.0/24 has it: it allows \
                   nothing there; write the number of the port";
    let other = "spec.egress[0].ports: port name \"query\" is 53/UDP at pod shop/named, and the rule is for TCP: write `protocol: \
                 UDP`, or add the name to a TCP port of the pod";
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
        &["spec.egress[0].ports: port name \"nothing\" is no port of any pod it is looked up on"],
    );
    // An ingress name is the selected pod's, whoever the peer is.
    let ingress = egress("p", "").replace(
        "[Egress], egress: []",
        "[Ingress], ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: web}]}]",
    );
    let of_n = ingress.replace("app: web", "app: named");
    let parsed = manifest::parse(&format!("{CLUSTER}{pods}{of_n}"), "f");
    assert_eq!(super::lint(&World::of(parsed.objects.into_iter().map(|located| located.object))), []);
}
