//! Tests which pods the selectors of policies and of peers match: items 4 to 7 and 30 of docs/semantics.md.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use anyhow::{Context, Result};
use netpol_tests::{Lab, PodSpec, deny_all, policy};

use super::shop_and_blog;

#[test]
fn s04_selectors_of_namespaces_and_pods() -> Result<()> {
    let rows = [
        (
            "own namespace",
            "podSelector: {}",
            "shop/api -> shop/db 80/TCP\nblog/web -x shop/db 80/TCP\noutside -x shop/db 80/TCP",
        ),
        (
            "all namespaces",
            "namespaceSelector: {}",
            "shop/api -> shop/db 80/TCP\nblog/web -> shop/db 80/TCP\noutside -x shop/db 80/TCP\nnode-2 -x shop/db 80/TCP",
        ),
        (
            "both selectors in one peer",
            "{namespaceSelector: {matchLabels: {team: press}}, podSelector: {matchLabels: {app: web}}}",
            "shop/web -x shop/db 80/TCP\nblog/web -> shop/db 80/TCP",
        ),
        (
            "the label with the namespace's name",
            "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blog}}",
            "shop/web -x shop/db 80/TCP\nblog/web -> shop/db 80/TCP",
        ),
        (
            "In",
            "podSelector: {matchExpressions: [{key: app, operator: In, values: [api, web]}]}",
            "shop/web -> shop/db 80/TCP\nshop/api -> shop/db 80/TCP\nblog/web -x shop/db 80/TCP",
        ),
        (
            "NotIn",
            "podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [api]}]}",
            "shop/web -> shop/db 80/TCP\nshop/api -x shop/db 80/TCP",
        ),
        (
            "Exists",
            "namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}",
            "shop/web -> shop/db 80/TCP\nblog/web -> shop/db 80/TCP",
        ),
        (
            "DoesNotExist",
            "podSelector: {matchExpressions: [{key: nothing, operator: DoesNotExist}]}",
            "shop/web -> shop/db 80/TCP\nblog/web -x shop/db 80/TCP",
        ),
    ];
    // At first, the only policy selects no pod: namespace `nowhere` has no pods. Each row replaces the policy.
    let lab = Lab::start(shop_and_blog().nodes(2), &[deny_all("nowhere")])?;
    for (case, peer, table) in rows {
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], ingress: [{{from: [{}]}}]}}",
            if peer.starts_with('{') { peer.to_owned() } else { format!("{{{peer}}}") }
        );
        lab.set_policies(&[policy("shop/db", &spec)])?;
        lab.expect(table).map_err(|error| error.context(case))?;
    }
    // If the selectors are in two peers, a pod needs to match only one of them.
    lab.set_policies(&[policy(
        "shop/db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
          ingress: [{from: [{namespaceSelector: {matchLabels: {team: press}}}, {podSelector: {matchLabels: {app: api}}}]}]}",
    )])?;
    lab.expect("shop/api -> shop/db 80/TCP\nblog/web -> shop/db 80/TCP\nshop/web -x shop/db 80/TCP")
}

#[test]
fn s05_peers_do_not_match_host_network_pods() -> Result<()> {
    let lab = Lab::start(
        shop_and_blog().nodes(2),
        &[policy(
            "shop/all-pods",
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}",
        )],
    )?;
    // A host-network pod on the other node. Its address is the node's, which the selectors of peers must not match.
    let address = lab.cluster.host("node-2").v4();
    lab.cluster.manifests().write(
        "host-network.yaml",
        &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: shop, name: on-host, labels: {{app: web}}}}, \
             spec: {{nodeName: node-2, hostNetwork: true, containers: []}}, \
             status: {{phase: Running, podIPs: [{{ip: {address}}}]}}}}"
        ),
    )?;
    lab.expect("shop/web -> shop/db 80/TCP\nblog/web -> shop/db 80/TCP\nnode-2 -x shop/db 80/TCP")
}

#[test]
fn s06_selectors_match_neither_finished_pods_nor_their_former_addresses() -> Result<()> {
    let from_web = policy(
        "shop/db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
    );
    let mut lab = Lab::start(shop_and_blog(), &[from_web])?;
    lab.expect("shop/web -> shop/db 80/TCP\nshop/api -x shop/db 80/TCP")?;

    lab.cluster.edit_pod("shop/web", |pod| pod.phase("Succeeded"))?;
    lab.expect("shop/web -x shop/db 80/TCP\nshop/api -x shop/db 80/TCP")?;

    // A new pod, which no rule allows, gets the same address. The manifest of the finished pod still exists.
    let address_number = lab.cluster.host("shop/web").v4().octets()[3];
    lab.cluster.remove_pod_keep_manifest("shop/web")?;
    lab.cluster.add_pod(PodSpec::new("shop/heir").labels("app=heir").number(address_number))?;
    lab.expect("shop/heir -x shop/db 80/TCP\nshop/api -x shop/db 80/TCP\nshop/heir -> shop/api 80/TCP")?;

    // Another new pod, which a rule allows, gets the same address.
    lab.cluster.remove_pod("shop/heir")?;
    lab.cluster.add_pod(PodSpec::new("shop/young").labels("app=web").number(address_number))?;
    lab.expect("shop/young -> shop/db 80/TCP\nshop/api -x shop/db 80/TCP")
}

#[test]
fn s07_an_invalid_policy_isolates_and_is_reported() -> Result<()> {
    let mut lab = Lab::start(
        shop_and_blog(),
        &[
            policy(
                "shop/bad-block",
                "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress],
                  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}, {from: [{podSelector: {matchLabels: {app: api}}}]}]}",
            ),
            policy(
                "shop/bad-protocol",
                "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
                  ingress: [{ports: [{protocol: ICMP, port: 80}, {protocol: TCP, port: 443}]}]}",
            ),
        ],
    )?;
    lab.expect(
        "shop/api -> shop/web 80/TCP
         shop/db  -x shop/web 80/TCP
         blog/web -x shop/web 80/TCP
         shop/web -x shop/db  80/TCP
         shop/web -> shop/db  443/TCP",
    )?;
    lab.agent().wait_log(&["bad-block", "ipBlock"])?;
    lab.agent().wait_log(&["bad-protocol", "ICMP"])
}

#[test]
fn s04_a_namespace_without_an_object_has_only_the_name_label() -> Result<()> {
    let from = |labels: &str| {
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], \
             ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{{labels}}}}}}}]}}]}}"
        );
        [policy("shop/db", &spec)]
    };
    let lab = Lab::start(shop_and_blog(), &from("team: press"))?;
    lab.expect("blog/web -> shop/db 80/TCP\nshop/web -x shop/db 80/TCP")?;
    lab.cluster.manifests().remove("namespace-blog.yaml")?;
    lab.expect("blog/web -x shop/db 80/TCP")?;
    lab.set_policies(&from("kubernetes.io/metadata.name: blog"))?;
    lab.expect("blog/web -> shop/db 80/TCP\nshop/web -x shop/db 80/TCP")
}

#[test]
fn s06_an_address_that_several_pods_claim_belongs_to_one_of_them() -> Result<()> {
    let from_web = policy(
        "shop/db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
    );
    let mut lab = Lab::start(shop_and_blog(), &[from_web])?;
    lab.cluster.edit_pod("shop/api", |pod| pod.created("2026-01-01T00:00:00Z"))?;
    let address = lab.cluster.host("shop/api").v4();
    // Another pod, which is an allowed peer on another node, claims the address of `api`. If the address belongs to the
    // other pod, connections from `api` are allowed.
    let claim = |metadata: &str| {
        let manifest = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: shop, labels: {{app: web}}, {metadata}}}, \
             spec: {{nodeName: node-9, containers: []}}, status: {{phase: Running, podIPs: [{{ip: {address}}}]}}}}"
        );
        lab.cluster.manifests().write("claim.yaml", &manifest)
    };
    let rows = [
        ("name: zzz, creationTimestamp: '2026-01-01T00:00:00Z'", "->", "the greatest name"),
        ("name: aaa, creationTimestamp: '2026-01-01T00:00:00Z'", "-x", "a smaller name"),
        ("name: aaa, creationTimestamp: '2026-01-02T00:00:00Z'", "->", "the latest creation time"),
        (
            "name: zzz, creationTimestamp: '2026-01-02T00:00:00Z', deletionTimestamp: '2026-01-03T00:00:00Z'",
            "-x",
            "a deletion timestamp",
        ),
    ];
    for (metadata, arrow, case) in rows {
        claim(metadata)?;
        lab.expect_without_reference_evaluator(&format!("shop/api {arrow} shop/db 80/TCP\nshop/web -> shop/db 80/TCP"))
            .with_context(|| format!("the other pod has {case}"))?;
    }
    lab.cluster.manifests().remove("claim.yaml")?;
    lab.expect("shop/api -x shop/db 80/TCP")
}

#[test]
fn s30_invalid_pod_addresses_are_ignored_and_a_node_address_is_no_peer() -> Result<()> {
    let closed = policy("shop/db", "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress]}");
    let from_web = policy(
        "shop/api",
        "{podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
    );
    let mut lab = Lab::start(shop_and_blog().nodes(2), &[closed, from_web])?;
    let denied = "shop/web -x shop/db 80/TCP\nshop/db -x shop/web 80/TCP\nblog/web -x shop/db 80/TCP";
    lab.expect(denied)?;
    // None of these addresses in `status.podIPs` may replace the pod's own address of the same family.
    for address in [
        "::ffff:10.9.9.9",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "169.254.0.1",
        "255.255.255.255",
        "::1",
        "fe80::9",
        "ff02::1",
    ] {
        lab.cluster.edit_pod("shop/db", |pod| pod.extra_pod_ip(address))?;
        lab.expect_without_reference_evaluator(denied)
            .with_context(|| format!("the pod's first address is {address}"))?;
    }
    // Removes the additional address.
    lab.cluster.edit_pod("shop/db", |pod| pod.extra_pod_ip(""))?;
    // A pod of this node claims the address of `db` as an IPv4-mapped address. No policy selects this pod. Another pod
    // claims the address of the other node.
    let claim = |namespace: &str, node: u8, address: &str| {
        let manifest = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: {namespace}, name: zzz, labels: {{app: web}}, \
             creationTimestamp: '2030-01-01T00:00:00Z'}}, spec: {{nodeName: node-{node}, containers: []}}, \
             status: {{phase: Running, podIPs: [{{ip: '{address}'}}]}}}}"
        );
        lab.cluster.manifests().write(&format!("claim-{namespace}.yaml"), &manifest)
    };
    claim("blog", 1, &format!("::ffff:{}", lab.cluster.host("shop/db").v4()))?;
    claim("shop", 2, &lab.cluster.host("node-2").v4().to_string())?;
    lab.expect_without_reference_evaluator(&format!("{denied}\nnode-2 -x shop/api 80/TCP\nshop/web -> shop/api 80/TCP"))
}

#[test]
fn s07_an_invalid_pod_selector_isolates_the_whole_namespace() -> Result<()> {
    let mut lab = Lab::start(
        shop_and_blog(),
        &[policy(
            "shop/bad-selector",
            "{podSelector: {matchExpressions: [{key: app, operator: Near, values: [db]}]}, policyTypes: [Ingress],
              ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}",
        )],
    )?;
    lab.expect(
        "shop/api -> shop/db  80/TCP
         shop/api -> shop/web 80/TCP
         shop/db  -x shop/web 80/TCP
         blog/web -x shop/db  80/TCP
         outside  -x shop/api 53/UDP
         shop/web -> blog/web 80/TCP",
    )?;
    lab.agent().wait_log(&["bad-selector", "Near"])
}
