//! Whom policies select and what they allow: lines 1 to 14 of docs/semantics.md, with real connections.

use anyhow::Result;
use netpol_policy::model::Protocol::{Sctp, Tcp, Udp};
use netpol_tests::{Cluster, ClusterBuilder, Lab, PodSpec, deny_all, policy};

/// Two namespaces, and a host outside with two more addresses.
fn shop_and_blog() -> ClusterBuilder {
    Cluster::builder()
        .namespace("shop", "team=sales")
        .namespace("blog", "team=press")
        .pods(&[
            ("shop/web", "app=web,tier=front"),
            ("shop/api", "app=api,tier=back"),
            ("shop/db", "app=db,tier=back"),
            ("blog/web", "app=web,tier=front"),
        ])
        .outside("203.0.113.5")
        .outside("203.0.113.77")
        .serve(&[(Tcp, 80), (Tcp, 443), (Udp, 53)])
}

#[test]
fn s01_isolation_is_per_direction_and_policies_add_up() -> Result<()> {
    let web_from_api = policy(
        "shop/web-from-api",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 80}]}]}",
    );
    let web_from_db = policy(
        "shop/web-from-db",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 443}]}]}",
    );
    let api_to_nobody = policy(
        "shop/api-to-web",
        "{podSelector: {matchLabels: {app: api}}, policyTypes: [Egress],
          egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}",
    );
    let lab = Lab::start(shop_and_blog(), &[web_from_api, web_from_db, api_to_nobody])?;
    lab.expect(
        "shop/api  -> shop/web  80/TCP
         shop/api  -x shop/web  443/TCP
         shop/db   -x shop/web  80/TCP
         shop/db   -> shop/web  443/TCP
         shop/web  -> blog/web  80/TCP
         shop/web  -> shop/api  80/TCP
         shop/api  -x shop/db   80/TCP
         shop/api  -x outside   53/UDP
         outside   -> shop/api  53/UDP",
    )?;
    lab.settles(&[(Tcp, 80), (Tcp, 443), (Udp, 53)])?;
    Ok(())
}

#[test]
fn s02_absent_policy_types_mean_ingress_and_egress_only_with_rules() -> Result<()> {
    let web = policy("shop/web", "{podSelector: {matchLabels: {app: web}}}");
    let api = policy(
        "shop/api",
        "{podSelector: {matchLabels: {app: api}},
          egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
    );
    let lab = Lab::start(shop_and_blog(), &[web, api])?;
    lab.expect(
        "shop/db  -x shop/web 80/TCP
         shop/web -> shop/db  80/TCP
         shop/db  -x shop/api 80/TCP
         shop/api -> shop/db  80/TCP
         shop/api -x blog/web 80/TCP",
    )
}

#[test]
fn s03_no_rules_deny_and_empty_rules_allow() -> Result<()> {
    let none = policy("shop/none", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: []}");
    let all = policy("shop/all", "{podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: [{}]}");
    let anyone = policy(
        "shop/anyone",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [], ports: [{port: 80}]}]}",
    );
    let lab = Lab::start(shop_and_blog(), &[none, all, anyone])?;
    lab.expect(
        "shop/api    -x shop/web 80/TCP
         outside     -x shop/web 80/TCP
         shop/web    -> shop/api 80/TCP
         outside     -> shop/api 53/UDP
         203.0.113.5 -> shop/db  80/TCP
         blog/web    -> shop/db  80/TCP
         blog/web    -x shop/db  53/UDP",
    )
}

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
            "both",
            "{namespaceSelector: {matchLabels: {team: press}}, podSelector: {matchLabels: {app: web}}}",
            "shop/web -x shop/db 80/TCP\nblog/web -> shop/db 80/TCP",
        ),
        (
            "derived name",
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
    let lab = Lab::start(shop_and_blog().nodes(2), &[deny_all("nowhere")])?;
    for (what, peer, table) in rows {
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], ingress: [{{from: [{}]}}]}}",
            if peer.starts_with('{') { peer.to_owned() } else { format!("{{{peer}}}") }
        );
        lab.policies(&[policy("shop/db", &spec)])?;
        lab.expect(table).map_err(|error| error.context(what))?;
    }
    // Separate items are alternatives.
    lab.policies(&[policy(
        "shop/db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
          ingress: [{from: [{namespaceSelector: {matchLabels: {team: press}}}, {podSelector: {matchLabels: {app: api}}}]}]}",
    )])?;
    lab.expect("shop/api -> shop/db 80/TCP\nblog/web -> shop/db 80/TCP\nshop/web -x shop/db 80/TCP")
}

#[test]
fn s05_host_network_pods_are_neither_subject_nor_peer() -> Result<()> {
    let lab = Lab::start(
        shop_and_blog().nodes(2),
        &[policy(
            "shop/all-pods",
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}",
        )],
    )?;
    // A pod on the other node's network: that node's address must not become a peer, nor the node isolated.
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
fn s06_finished_pods_and_former_addresses_select_nothing() -> Result<()> {
    let from_web = policy(
        "shop/db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
    );
    let mut lab = Lab::start(shop_and_blog(), &[from_web])?;
    lab.expect("shop/web -> shop/db 80/TCP\nshop/api -x shop/db 80/TCP")?;

    lab.cluster.edit_pod("shop/web", |pod| pod.phase("Succeeded"))?;
    lab.expect("shop/web -x shop/db 80/TCP\nshop/api -x shop/db 80/TCP")?;

    // Its address goes to a pod that nothing allows; the finished one's manifest is still there.
    let number = lab.cluster.host("shop/web").v4().octets()[3];
    lab.cluster.remove_pod_quietly("shop/web")?;
    lab.cluster.add_pod(PodSpec::new("shop/heir").labels("app=heir").number(number))?;
    lab.expect("shop/heir -x shop/db 80/TCP\nshop/api -x shop/db 80/TCP\nshop/heir -> shop/api 80/TCP")?;

    // And one that is allowed takes it over at once.
    lab.cluster.remove_pod("shop/heir")?;
    lab.cluster.add_pod(PodSpec::new("shop/young").labels("app=web").number(number))?;
    lab.expect("shop/young -> shop/db 80/TCP\nshop/api -x shop/db 80/TCP")
}

#[test]
fn s07_a_policy_not_understood_isolates_and_is_reported() -> Result<()> {
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
fn s08_protocols_and_ranges_of_ports() -> Result<()> {
    let db = policy(
        "shop/db",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
          ingress: [{ports: [{port: 80}, {protocol: UDP}, {protocol: TCP, port: 1000, endPort: 1003}]}]}",
    );
    let served = [(Tcp, 80), (Udp, 80), (Udp, 53), (Tcp, 999), (Tcp, 1000), (Tcp, 1003), (Tcp, 1004)];
    let lab = Lab::start(shop_and_blog().serve(&served), &[db])?;
    lab.expect(
        "shop/web -> shop/db 80/TCP
         shop/web -> shop/db 80/UDP
         shop/web -> shop/db 53/UDP
         shop/web -x shop/db 999/TCP
         shop/web -> shop/db 1000/TCP
         shop/web -> shop/db 1003/TCP
         shop/web -x shop/db 1004/TCP",
    )?;
    lab.settles(&served)?;
    Ok(())
}

#[test]
fn s09_named_ports_resolve_on_the_destination() -> Result<()> {
    let cluster = shop_and_blog()
        .pod(PodSpec::new("shop/old").labels("kind=srv").port("admin", Tcp, 80))
        .pod(PodSpec::new("shop/new").labels("kind=srv").port("admin", Tcp, 443))
        .pod(PodSpec::new("shop/udp").labels("kind=srv").port("admin", Udp, 53));
    let ingress = policy(
        "shop/srv",
        "{podSelector: {matchLabels: {kind: srv}}, policyTypes: [Ingress], ingress: [{ports: [{port: admin}]}]}",
    );
    let egress = policy(
        "blog/out",
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: admin}]}]}",
    );
    let lab = Lab::start(cluster, &[ingress, egress])?;
    for from in ["shop/web", "blog/web"] {
        lab.expect(&format!(
            "{from} -> shop/old 80/TCP
             {from} -x shop/old 443/TCP
             {from} -x shop/new 80/TCP
             {from} -> shop/new 443/TCP
             {from} -x shop/udp 53/UDP"
        ))?;
    }
    lab.expect("blog/web -x shop/db 80/TCP\nblog/web -x outside 80/TCP\nshop/web -> shop/db 80/TCP")
}

#[test]
fn s10_many_peers_ports_and_blocks_are_all_enforced() -> Result<()> {
    use std::fmt::Write;
    let mut blocks = String::new();
    for third in 0..200 {
        let _ = write!(blocks, "{{ipBlock: {{cidr: 198.18.{third}.0/24}}}}, ");
    }
    let mut ports = String::new();
    for port in 0..400 {
        let _ = write!(ports, "{{port: {}}}, ", 2000 + port * 3);
    }
    let db = policy(
        "shop/db",
        &format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], \
             ingress: [{{from: [{blocks}{{ipBlock: {{cidr: 203.0.113.5/32}}}}], ports: [{ports}{{port: 80}}]}}]}}"
        ),
    );
    let served = [(Tcp, 80), (Tcp, 81), (Tcp, 2000), (Tcp, 2001), (Tcp, 3197), (Tcp, 3198)];
    let lab = Lab::start(shop_and_blog().outside("198.18.199.9").serve(&served), &[db])?;
    for from in ["198.18.199.9", "203.0.113.5"] {
        lab.expect(&format!(
            "{from} -> shop/db 80/TCP
             {from} -x shop/db 81/TCP
             {from} -> shop/db 2000/TCP
             {from} -x shop/db 2001/TCP
             {from} -> shop/db 3197/TCP
             {from} -x shop/db 3198/TCP
             203.0.113.77 -x shop/db 80/TCP"
        ))?;
    }
    Ok(())
}

#[test]
fn s11_s12_s13_blocks_and_what_is_cut_out_of_them() -> Result<()> {
    let mut lab = Lab::start(
        shop_and_blog(),
        &[policy(
            "shop/db",
            "podSelector: {matchLabels: {app: db}}
             policyTypes: [Ingress, Egress]
             ingress:
             - from: [{ipBlock: {cidr: 203.0.113.9/24, except: [203.0.113.64/26]}}]
               ports: [{port: 80}]
             - from: [{ipBlock: {cidr: 203.0.113.64/27}}]
               ports: [{port: 443}]
             egress:
             - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/26]}}]
               ports: [{protocol: UDP, port: 53}]",
        )],
    )?;
    lab.expect(
        "203.0.113.5  -> shop/db 80/TCP
         203.0.113.5  -x shop/db 443/TCP
         203.0.113.77 -x shop/db 80/TCP
         203.0.113.77 -> shop/db 443/TCP
         outside      -x shop/db 80/TCP
         shop/db -x 203.0.113.5  53/UDP
         shop/db -> 203.0.113.77 53/UDP
         shop/db -x 203.0.113.77 80/TCP
         shop/db -> outside      53/UDP
         shop/db -> shop/web     53/UDP",
    )?;
    lab.agent().wait_log(&["203.0.113.9/24"])
}

#[test]
fn s14_blocks_apply_to_pods_as_packets_carry_them() -> Result<()> {
    let cluster = shop_and_blog().build()?;
    let api = cluster.host("shop/api").v4();
    drop(cluster);
    let lab = Lab::start(
        shop_and_blog(),
        &[policy(
            "shop/db",
            &format!(
                "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], \
                 ingress: [{{from: [{{ipBlock: {{cidr: {api}/32}}}}]}}]}}"
            ),
        )],
    )?;
    lab.expect("shop/api -> shop/db 80/TCP\nshop/web -x shop/db 80/TCP\nblog/web -x shop/db 80/TCP")
}

#[test]
fn s08_sctp_is_a_protocol_of_its_own() -> Result<()> {
    use netpol_tests::packet::{Ip, Marker};
    use netpol_tests::raw::{Shot, check};
    let rules = policy(
        "shop/db",
        &format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], ingress: [{{ports: [{{protocol: {}, port: 36412}}]}}]}}",
            Sctp.name()
        ),
    );
    let lab = Lab::start(shop_and_blog(), &[rules])?;
    let ip = Ip::new(lab.cluster.host("shop/web").v4().into(), lab.cluster.host("shop/db").v4().into());
    let shot = |what: &str, make: &dyn Fn(&[u8]) -> Vec<u8>| {
        let marker = Marker::new();
        Shot::new(&lab.cluster, "shop/web", "shop/db", what, marker, &[make(&marker.0)])
    };
    check(
        &lab.cluster,
        "shop/web",
        "shop/db",
        &[
            (shot("SCTP to the allowed port", &|mark| ip.sctp_init(5000, 36412, mark)), true),
            (shot("SCTP to another port", &|mark| ip.sctp_init(5001, 36413, mark)), false),
            (shot("UDP to a port of that number", &|mark| ip.udp(5000, 36412, mark)), false),
        ],
    )
}
