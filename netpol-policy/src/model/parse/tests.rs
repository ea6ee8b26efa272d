//! Tests of parsing pods, Services and slices from manifests.
//! sNN in the name of a test is an item of docs/semantics.md.

use std::net::IpAddr;

use crate::manifest;
use crate::model::{EndpointSlice, Object, Pod, Service, SliceEndpoint};

/// Returns the only object of a manifest, and its diagnostics.
fn parse_only_object(text: &str) -> (Object, Vec<String>) {
    let mut parsed = manifest::parse(text, "f");
    let errors = parsed.errors.iter().map(|error| {
        let field = error.field.as_deref().unwrap_or_default();
        format!("{field}: {}", error.message)
    });
    let errors = errors.collect();
    assert_eq!(parsed.objects.len(), 1, "{text}: {errors:?}");
    (parsed.objects.remove(0).object, errors)
}

fn pod(spec: &str, status: &str) -> (Pod, Vec<String>) {
    let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {spec}, status: {status}}}");
    match parse_only_object(&text) {
        (Object::Pod(pod), errors) => (pod, errors),
        (other, _) => panic!("{other:?}"),
    }
}

fn service(spec: &str, status: &str) -> (Service, Vec<String>) {
    let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {spec}, status: {status}}}");
    match parse_only_object(&text) {
        (Object::Service(service), errors) => (service, errors),
        (other, _) => panic!("{other:?}"),
    }
}

fn slice(fields: &str) -> (EndpointSlice, Vec<String>) {
    let text = format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
           metadata: {{name: a-x1, labels: {{kubernetes.io/service-name: a}}}}, {fields}}}"
    );
    match parse_only_object(&text) {
        (Object::Slice(slice), errors) => (slice, errors),
        (other, _) => panic!("{other:?}"),
    }
}

/// Returns the frontends of a pod's hostPorts as `address port/protocol -> container port`, with the protocol's number.
fn frontends(pod: &Pod) -> Vec<String> {
    pod.host_frontends()
        .map(|(frontend, port)| {
            let crate::model::FrontendAddress::Address(address) = frontend.address else { panic!("{frontend:?}") };
            format!("{address} {}/{} -> {port}", frontend.port, frontend.protocol)
        })
        .collect()
}

#[test]
fn host_ports_are_at_node_addresses_or_at_their_host_ip() {
    let spec = "{
        containers: [{name: main, image: x, ports: [
            {containerPort: 80, hostPort: 8080},
            {containerPort: 81, hostPort: 8081, hostIP: 192.0.2.9, protocol: UDP},
            {containerPort: 82, hostPort: 8082, hostIP: '::'},
            {containerPort: 83}]}],
        initContainers: [
            {name: sidecar, image: x, restartPolicy: Always, ports: [{containerPort: 90, hostPort: 8090, hostIP: 0.0.0.0}]},
            {name: init, image: x, ports: [{containerPort: 91, hostPort: 8091}]}]}";
    let dual_stack_node = "{hostIP: 192.0.2.1, hostIPs: [{ip: 192.0.2.1}, {ip: '2001:db8::1'}]}";
    let (with_host_ports, errors) = pod(spec, dual_stack_node);
    assert_eq!(errors, [""; 0]);
    assert_eq!(
        frontends(&with_host_ports),
        [
            "192.0.2.1 8080/6 -> 80",
            "2001:db8::1 8080/6 -> 80",
            "192.0.2.9 8081/17 -> 81",
            "2001:db8::1 8082/6 -> 82",
            "192.0.2.1 8090/6 -> 90",
        ]
    );
    // An old API server sets only `hostIP`.
    let (from_old_server, _) =
        pod("{containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]}", "{hostIP: 192.0.2.1}");
    assert_eq!(frontends(&from_old_server), ["192.0.2.1 8080/6 -> 80"]);
}

#[test]
fn host_ports_are_ignored_if_they_are_0_or_their_pod_is_finished_or_on_the_host_network() {
    let status = "{hostIP: 192.0.2.1}";
    for spec in [
        "{hostNetwork: true, containers: [{ports: [{containerPort: 80, hostPort: 80}]}]}",
        "{containers: [{ports: [{containerPort: 80, hostPort: 0}]}]}",
        "{containers: [{ports: [{containerPort: 80, hostIP: 192.0.2.1}]}]}",
    ] {
        let (pod, errors) = pod(spec, status);
        assert_eq!((pod.host_ports, errors), (None, Vec::new()), "{spec}");
    }
    let host_port = "{containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]}";
    let (finished, _) = pod(host_port, "{hostIP: 192.0.2.1, phase: Succeeded}");
    assert_eq!(frontends(&finished), [""; 0]);
    let (unscheduled, _) = pod(host_port, "{}");
    assert_eq!(frontends(&unscheduled), [""; 0]);
}

#[test]
fn an_invalid_host_port_is_left_out_and_reported_once() {
    for (port, message) in [
        (
            "containerPort: 80, hostPort: 70000",
            "spec.containers[0].ports[0].hostPort: 70000 is not a port; ports are 1 to 65535",
        ),
        (
            "containerPort: 0, hostPort: 80, name: web",
            "spec.containers[0].ports[0].containerPort: 0 is not a port; ports are 1 to 65535",
        ),
        (
            "containerPort: 80, hostPort: 80, name: web, protocol: tcp",
            "spec.containers[0].ports[0].protocol: unknown protocol `tcp`; write TCP",
        ),
        (
            "containerPort: 80, hostPort: 80, hostIP: here",
            "spec.containers[0].ports[0].hostIP: `here` is not an IP address",
        ),
    ] {
        let (pod, errors) = pod(&format!("{{containers: [{{ports: [{{{port}}}]}}]}}"), "{hostIP: 192.0.2.1}");
        assert_eq!((frontends(&pod), errors), (Vec::new(), vec![message.to_owned()]), "{port}");
    }
}

#[test]
fn a_service_has_the_addresses_that_kube_proxy_translates() {
    for (spec, status, addresses) in [
        ("{clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00::7']}", "{}", &["10.96.0.7", "fd00::7"][..]),
        ("{clusterIP: 10.96.0.7}", "{}", &["10.96.0.7"]),
        ("{clusterIP: None, clusterIPs: [None]}", "{}", &[]),
        ("{clusterIP: None}", "{}", &[]),
        ("{clusterIP: ''}", "{}", &[]),
        ("{}", "{}", &[]),
        ("{type: ExternalName, externalName: example.org, externalIPs: [198.51.100.1]}", "{}", &[]),
        ("{clusterIP: None, externalIPs: [198.51.100.1]}", "{}", &[]),
        ("{clusterIPs: [10.96.0.7], externalIPs: [198.51.100.1, 10.96.0.7]}", "{}", &["10.96.0.7", "198.51.100.1"]),
        (
            "{type: LoadBalancer, clusterIPs: [10.96.0.7]}",
            "{loadBalancer: {ingress: [{ip: 203.0.113.1}, {hostname: lb.example.org}]}}",
            &["10.96.0.7", "203.0.113.1"],
        ),
        (
            "{type: LoadBalancer, clusterIPs: [10.96.0.7]}",
            "{loadBalancer: {ingress: [{ip: 203.0.113.1, ipMode: VIP}, {ip: 203.0.113.2, ipMode: Proxy}]}}",
            &["10.96.0.7", "203.0.113.1"],
        ),
    ] {
        let (service, errors) = service(spec, status);
        let expected: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!((service.addresses, errors), (expected, Vec::new()), "{spec}");
    }
}

#[test]
fn a_service_has_ports_and_node_ports() {
    let ports = |spec: &str| {
        let (service, errors) = service(spec, "{}");
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| format!("{}:{}/{} {:?}", port.name, port.port, port.protocol.name(), port.node_port))
            .collect();
        (ports, errors)
    };
    let listed = "ports: [{port: 53, protocol: UDP, name: dns, targetPort: dns}, {port: 80, nodePort: 30080}, {port: 81, nodePort: 0}]";
    let (cluster_ip_ports, errors) = ports(&format!("{{clusterIP: 10.96.0.7, {listed}}}"));
    assert_eq!(
        (cluster_ip_ports, errors.len()),
        (vec!["dns:53/UDP None".into(), ":80/TCP Some(30080)".into(), ":81/TCP None".into()], 0)
    );
    // kube-proxy does not serve a Service of type ExternalName, so its ports have no node ports.
    let (external_name_ports, _) = ports(&format!("{{type: ExternalName, externalName: example.org, {listed}}}"));
    assert_eq!(external_name_ports[1], ":80/TCP None");
    let (valid_ports, errors) =
        ports("{clusterIP: 10.96.0.7, ports: [{port: 0}, {port: 80, protocol: http}, {port: 81}]}");
    assert_eq!(valid_ports, [":81/TCP None"]);
    assert_eq!(
        errors,
        [
            "spec.ports[0].port: 0 is not a port; ports are 1 to 65535",
            "spec.ports[1].protocol: unknown protocol `http`; write TCP, UDP or SCTP",
        ]
    );
}

#[test]
fn an_invalid_address_does_not_affect_the_rest_of_a_service() {
    let (service, errors) = service(
        "{clusterIPs: [10.96.0.7, here], externalIPs: [there], ports: [{port: 80}]}",
        "{loadBalancer: {ingress: [{ip: nowhere}]}}",
    );
    assert_eq!((service.addresses, service.ports.len()), (vec![IpAddr::from([10, 96, 0, 7])], 1));
    assert_eq!(
        errors,
        [
            "spec.clusterIPs[1]: `here` is not an IP address",
            "spec.externalIPs[0]: `there` is not an IP address",
            "status.loadBalancer.ingress[0].ip: `nowhere` is not an IP address",
        ]
    );
}

/// An endpoint is draining if it is terminating and still serving. A condition without a value has its default:
/// `ready` and `serving` are true, `terminating` is false.
#[test]
fn conditions_make_an_endpoint_ready_or_draining() {
    for (conditions, ready, draining) in [
        ("", true, false),
        (", conditions: {}", true, false),
        (", conditions: {ready: null, serving: null, terminating: null}", true, false),
        (", conditions: {ready: true, serving: true, terminating: false}", true, false),
        (", conditions: {ready: false, serving: false, terminating: false}", false, false),
        (", conditions: {ready: false, serving: true, terminating: true}", false, true),
        (", conditions: {ready: false, terminating: true}", false, true),
        (", conditions: {ready: false, serving: false, terminating: true}", false, false),
        // publishNotReadyAddresses: the slice lists the endpoint as ready, whatever its other conditions are.
        (", conditions: {ready: true, serving: false, terminating: true}", true, false),
    ] {
        let (slice, errors) = slice(&format!("addressType: IPv4, endpoints: [{{addresses: [10.1.0.2]{conditions}}}]"));
        let address = IpAddr::from([10, 1, 0, 2]);
        assert_eq!(
            (slice.endpoints, errors),
            (vec![SliceEndpoint { address, ready, draining }], Vec::new()),
            "{conditions}"
        );
    }
}

#[test]
fn a_slice_has_the_same_ports_for_all_endpoints() {
    let (slice, errors) = slice(
        "addressType: IPv6,
         endpoints: [{addresses: ['fd00::2', 'fd00::3']}, {addresses: [x]}],
         ports: [{name: web, port: 8080}, {port: 53, protocol: UDP}, {name: all}, {port: -1}]",
    );
    assert_eq!(slice.service.as_deref(), Some("a"));
    // An item of `ports` without a port number is ignored.
    let ports: Vec<String> =
        slice.ports.iter().map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol.name())).collect();
    assert_eq!(ports, ["web:8080/TCP", ":53/UDP"]);
    // The model has one endpoint for each valid address.
    assert_eq!(slice.endpoints.len(), 2);
    assert_eq!(
        errors,
        [
            "ports[3].port: -1 is not a port; ports are 1 to 65535",
            "endpoints[1].addresses[0]: `x` is not an IP address"
        ]
    );
}

#[test]
fn fqdn_slices_and_slices_without_endpoints_have_no_backends() {
    let (fqdn_slice, errors) = slice("addressType: FQDN, endpoints: [{addresses: [example.org]}], ports: [{port: 80}]");
    assert_eq!((fqdn_slice.endpoints.len(), errors), (0, Vec::new()));
    let (empty, errors) = slice("addressType: IPv4, endpoints: null, ports: null");
    assert_eq!((empty.endpoints.len(), empty.ports.len(), errors), (0, 0, Vec::new()));
    let text =
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4, endpoints: []}";
    let (Object::Slice(without_service), _) = parse_only_object(text) else { panic!("not a slice") };
    assert_eq!(without_service.service, None);
}

#[test]
fn s30_an_invalid_pod_address_is_ignored_and_valid_ones_are_kept() {
    let valid = ["10.0.0.5", "fd00::5"];
    for invalid in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.0.0.9",
        "fe80::1",
        "ff02::1",
    ] {
        let ips = |list: &[&str]| list.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect::<Vec<_>>().join(", ");
        let expected: Vec<IpAddr> = valid.iter().map(|text| text.parse().unwrap()).collect();
        for list in [[invalid, valid[0], valid[1]], [valid[0], invalid, valid[1]], [valid[0], valid[1], invalid]] {
            let (pod, errors) = pod("{containers: []}", &format!("{{podIPs: [{}]}}", ips(&list)));
            assert_eq!(pod.addresses, expected, "{invalid}: {errors:?}");
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains("no pod can have"), "{errors:?}");
        }
        let (pod, errors) = pod("{containers: []}", &format!("{{podIP: '{invalid}'}}"));
        assert_eq!((pod.addresses, errors.len()), (Vec::new(), 1), "{invalid}");
    }
    let (pod, errors) = pod("{containers: []}", "{podIPs: [{ip: '::ffff:10.0.0.9'}, {ip: 10.0.0.5}]}");
    assert_eq!(pod.addresses, [IpAddr::from([10, 0, 0, 5])]);
    assert_eq!(
        errors,
        ["status.podIPs[0].ip: ::ffff:10.0.0.9 is an IPv4-mapped IPv6 address, which no pod can have; it is ignored"]
    );
}
