use super::*;
use crate::cluster_state::Event;
use crate::manifest;
use crate::model::ObjectKey;

/// The Service `shop/web` of both IP families with a nodePort and an external IP, and two nodes.
const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [198.51.100.1]
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}, {name: dns, protocol: UDP, port: 53}]
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}}
---
";

/// Returns the manifest of an `EndpointSlice` of a Service in the namespace `shop`, with one port. `endpoints` has the
/// address and the conditions of each endpoint.
fn slice(name: &str, service: &str, port: &str, endpoints: &[(&str, &str)]) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, conditions)| format!("{{addresses: ['{address}'], conditions: {{{conditions}}}}}"))
        .collect();
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: shop, \
         labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, ports: [{port}], \
         endpoints: [{}]}}\n---\n",
        endpoints.join(", ")
    )
}

fn cluster_state(texts: &[&str]) -> ClusterState {
    let parsed = manifest::parse(&texts.concat(), "cluster.yaml");
    assert_eq!(parsed.errors, []);
    ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object))
}

/// Returns the TCP frontend at an address and port.
fn frontend_at(cluster_state: &ClusterState, address: &str, port: u16) -> Option<Frontend> {
    cluster_state.frontend_at(address.parse().expect("an address"), 6, port)
}

/// Returns the backends of the TCP frontend at an address and port, as `address:port`.
fn backends_of(cluster_state: &ClusterState, address: &str, port: u16) -> Vec<String> {
    let frontend = frontend_at(cluster_state, address, port).expect("a frontend");
    let backends = cluster_state.backends(&frontend);
    backends.into_iter().map(|Backend { address, port }| format!("{address}:{port}")).collect()
}

#[test]
fn frontends_are_at_service_addresses_and_on_all_nodes_except_the_local_node() {
    let mut cluster_state = cluster_state(&[WEB]);
    let node_port = |address| Some(Frontend { address, port: 30080, protocol: 6 });
    for (address, port, expected) in [
        ("10.96.0.1", 80, true),
        ("fd96::1", 80, true),
        ("198.51.100.1", 80, true),
        ("10.96.0.1", 30080, false),
        ("10.96.0.1", 8080, false),
        ("10.96.0.1", 53, false),
        ("192.168.0.1", 80, false),
        ("192.168.0.3", 30080, false),
    ] {
        assert_eq!(frontend_at(&cluster_state, address, port).is_some(), expected, "{address}:{port}");
    }
    assert_eq!(frontend_at(&cluster_state, "192.168.0.2", 30080), node_port(FrontendAddress::AnyNodeV4));
    cluster_state.apply(Event::LocalAddresses(vec!["192.168.0.1".parse().unwrap(), "10.96.0.1".parse().unwrap()]));
    assert_eq!(frontend_at(&cluster_state, "192.168.0.1", 30080), None, "local node: evaluated post-DNAT");
    assert_eq!(
        frontend_at(&cluster_state, "10.96.0.1", 80),
        None,
        "with IPVS, cluster IPs are addresses of the local node"
    );
    assert_eq!(frontend_at(&cluster_state, "192.168.0.2", 30080), node_port(FrontendAddress::AnyNodeV4));
    cluster_state.apply(Event::Delete(ObjectKey::Node("n2".into())));
    assert_eq!(frontend_at(&cluster_state, "192.168.0.2", 30080), None);
}

#[test]
fn a_node_port_has_the_ip_families_of_its_service() {
    let has_v4_and_v6 = |addresses: &str| {
        let text = "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, \
                    spec: {ADDRESSES ports: [{port: 80, nodePort: 30080}]}}";
        let cluster_state = cluster_state(&[&text.replace("ADDRESSES", addresses)]);
        let has_node_port = |address| cluster_state.has_frontend(&Frontend { address, port: 30080, protocol: 6 });
        [has_node_port(FrontendAddress::AnyNodeV4), has_node_port(FrontendAddress::AnyNodeV6)]
    };
    assert_eq!(has_v4_and_v6("clusterIPs: [10.96.0.1],"), [true, false]);
    assert_eq!(has_v4_and_v6("clusterIPs: ['fd96::1'],"), [false, true]);
    assert_eq!(has_v4_and_v6("clusterIPs: [10.96.0.1, 'fd96::1'],"), [true, true]);
    assert_eq!(has_v4_and_v6("clusterIP: None,"), [false, false]);
}

#[test]
fn a_headless_service_has_no_frontend() {
    let headless = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, \
                    spec: {clusterIP: None, ports: [{name: http, port: 80}]}}\n---\n";
    let endpoint = slice("a", "web", "{name: http, port: 8080}", &[("10.0.0.1", "")]);
    let cluster_state = cluster_state(&[headless, &endpoint]);
    assert!(cluster_state.frontends.owners.keys().next().is_none());
    assert_eq!(cluster_state.services_of(Backend { address: "10.0.0.1".parse().unwrap(), port: 8080 }, 6), [].into());
}

#[test]
fn a_frontend_has_backends_from_all_slices_with_its_port_name_protocol_and_ip_family() {
    let a = slice("a", "web", "{name: http, port: 8080}", &[("10.0.0.1", "")]);
    let b = slice("b", "web", "{name: http, port: 9090}", &[("10.0.0.2", ""), ("10.0.0.1", "")]);
    let other_service = slice("c", "api", "{name: http, port: 8080}", &[("10.0.0.3", "")]);
    let dns = slice("d", "web", "{name: dns, port: 53, protocol: UDP}", &[("10.0.0.4", "")]);
    let wrong_protocol = slice("e", "web", "{name: http, port: 53, protocol: UDP}", &[("10.0.0.5", "")]);
    let unnamed = slice("f", "web", "{port: 8080}", &[("10.0.0.6", "")]);
    let v6 = slice("g", "web", "{name: http, port: 8080}", &[("fd00::1", "")]).replace("IPv4", "IPv6");
    let mut cluster_state = cluster_state(&[WEB, &a, &b, &other_service, &dns, &wrong_protocol, &unnamed, &v6]);
    let v4 = ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:9090"];
    assert_eq!(backends_of(&cluster_state, "10.96.0.1", 80), v4);
    assert_eq!(backends_of(&cluster_state, "198.51.100.1", 80), v4);
    assert_eq!(backends_of(&cluster_state, "192.168.0.2", 30080), v4);
    assert_eq!(backends_of(&cluster_state, "fd96::1", 80), ["fd00::1:8080"]);
    cluster_state.apply(Event::Delete(ObjectKey::Slice(SliceKey::new("shop", "b"))));
    assert_eq!(backends_of(&cluster_state, "10.96.0.1", 80), ["10.0.0.1:8080"]);
    // The slice `a` now belongs to the Service `api`.
    let moved = slice("a", "api", "{name: http, port: 8080}", &[("10.0.0.1", "")]);
    for located in manifest::parse(&moved, "moved.yaml").objects {
        cluster_state.apply(Event::Apply(located.object));
    }
    assert_eq!(backends_of(&cluster_state, "10.96.0.1", 80), [""; 0]);
}

#[test]
fn ready_and_draining_endpoints_are_backends() {
    let endpoints = [
        ("10.0.0.1", ""),
        ("10.0.0.2", "ready: true"),
        ("10.0.0.3", "ready: false"),
        ("10.0.0.4", "ready: false, serving: true, terminating: true"),
        ("10.0.0.5", "ready: false, serving: false, terminating: true"),
    ];
    let cluster_state = cluster_state(&[WEB, &slice("a", "web", "{name: http, port: 8080}", &endpoints)]);
    assert_eq!(backends_of(&cluster_state, "10.96.0.1", 80), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.4:8080"]);
}

#[test]
fn two_services_at_one_address_are_one_frontend_with_the_backends_of_both() {
    let other = "{apiVersion: v1, kind: Service, metadata: {name: api, namespace: shop}, \
                 spec: {clusterIP: 10.96.0.2, externalIPs: [198.51.100.1], ports: [{port: 80}]}}\n---\n";
    let a = slice("a", "web", "{name: http, port: 8080}", &[("10.0.0.1", "")]);
    let b = slice("b", "api", "{port: 9090}", &[("10.0.0.2", "")]);
    let mut cluster_state = cluster_state(&[WEB, other, &a, &b]);
    assert_eq!(backends_of(&cluster_state, "198.51.100.1", 80), ["10.0.0.1:8080", "10.0.0.2:9090"]);
    assert_eq!(cluster_state.owners(&frontend_at(&cluster_state, "198.51.100.1", 80).unwrap()).len(), 2);
    cluster_state.apply(Event::Delete(ObjectKey::Service(ServiceKey::new("shop", "web"))));
    assert_eq!(backends_of(&cluster_state, "198.51.100.1", 80), ["10.0.0.2:9090"]);
    cluster_state.apply(Event::Delete(ObjectKey::Service(ServiceKey::new("shop", "api"))));
    assert_eq!(frontend_at(&cluster_state, "198.51.100.1", 80), None);
    assert!(!cluster_state.has_frontend_at("198.51.100.1".parse().unwrap()));
}

#[test]
fn services_of_a_backend_are_found() {
    let a = slice("a", "web", "{name: http, port: 8080}", &[("10.0.0.1", ""), ("10.0.0.2", "ready: false")]);
    let cluster_state = cluster_state(&[WEB, &a]);
    let services = |address: &str, port, protocol| {
        let found = cluster_state.services_of(Backend { address: address.parse().unwrap(), port }, protocol);
        found.into_iter().map(|key| key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(services("10.0.0.1", 8080, 6), ["shop/web"]);
    assert_eq!(services("10.0.0.1", 80, 6), [""; 0]);
    assert_eq!(services("10.0.0.1", 8080, 17), [""; 0]);
    assert_eq!(services("10.0.0.2", 8080, 6), [""; 0], "not ready");
}

#[test]
fn a_host_port_is_at_the_addresses_of_its_node_and_has_its_pod_as_backend() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, \
               spec: {containers: [{name: c, ports: [{containerPort: 8080, hostPort: 8000}]}]}, \
               status: {phase: PHASE, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], hostIPs: [{ip: 192.168.0.2}, {ip: 'fd01::2'}]}}";
    let mut cluster_state = cluster_state(&[WEB, &pod.replace("PHASE", "Running")]);
    assert_eq!(backends_of(&cluster_state, "192.168.0.2", 8000), ["10.0.0.1:8080"]);
    assert_eq!(backends_of(&cluster_state, "fd01::2", 8000), ["fd00::1:8080"]);
    assert_eq!(frontend_at(&cluster_state, "192.168.0.1", 8000), None, "another node");
    assert_eq!(frontend_at(&cluster_state, "192.168.0.2", 8080), None);
    for located in manifest::parse(&pod.replace("PHASE", "Succeeded"), "pod.yaml").objects {
        cluster_state.apply(Event::Apply(located.object));
    }
    assert_eq!(frontend_at(&cluster_state, "192.168.0.2", 8000), None, "the pod has finished");
}
