//! A large cluster with Services for benchmarks, the same in every run.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::cluster;
use crate::model::{
    EndpointSlice, Labels, Object, Peer, Peers, Pod, Policy, PolicyKey, PortMatch, PortRange, Ports, Protocol,
    Requirement, Rule, Selector, Service, ServiceKey, ServicePort, SliceEndpoint, SliceKey, SlicePort, TargetPort,
};

/// Returns a [`cluster`] with `pods` pods and `services` Services. Each Service has an equal share of the pods as
/// backends, and is in the namespace of its first backend. Each namespace has an egress policy for one app. The policy
/// allows a named port of another app in the namespace, and DNS at any address.
pub fn cluster_with_services(pods: usize, services: usize) -> Vec<Object> {
    let mut objects = cluster(pods, 0);
    let pods: Vec<Pod> = objects.iter().filter_map(as_pod).cloned().collect();
    let namespaces: Vec<Arc<str>> = objects.iter().filter_map(namespace_name).cloned().collect();
    objects.extend(namespaces.into_iter().map(|namespace| Object::Policy(egress_policy(namespace))));
    let pods_per_service = pods.len().div_ceil(services.max(1)).max(1);
    for (index, backends) in pods.chunks(pods_per_service).enumerate() {
        objects.push(Object::Service(service(index, backends)));
        objects.push(Object::Slice(slice(index, backends)));
    }
    objects
}

fn as_pod(object: &Object) -> Option<&Pod> {
    match object {
        Object::Pod(pod) => Some(pod),
        _ => None,
    }
}

fn namespace_name(object: &Object) -> Option<&Arc<str>> {
    match object {
        Object::Namespace(namespace) => Some(&namespace.name),
        _ => None,
    }
}

fn egress_policy(namespace: Arc<str>) -> Policy {
    let app =
        |name: &str| Selector { requirements: vec![Requirement::In("app".into(), vec![name.into()])], invalid: false };
    let port = |protocol, port| Ports::Of(vec![PortMatch { protocol, port }]);
    let to_app = Peer::Pods { namespaces: None, pods: app("app-1") };
    let dns = Rule { peers: Peers::Any, ports: port(Protocol::Udp, PortRange::Range(53, 53)) };
    let http = Rule { peers: Peers::Of(vec![to_app]), ports: port(Protocol::Tcp, PortRange::Named("http".into())) };
    Policy {
        key: PolicyKey::new(namespace, "egress"),
        pods: app("app-0"),
        ingress: None,
        egress: Some(vec![dns, http]),
        mode: None,
        diagnostics: Vec::new(),
    }
}

fn service_name(index: usize) -> Arc<str> {
    format!("service-{index}").into()
}

fn service(index: usize, backends: &[Pod]) -> Service {
    let offset = u32::try_from(index).unwrap_or(u32::MAX);
    let address = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 128, 0, 1)).wrapping_add(offset));
    Service {
        key: ServiceKey::new(backends[0].key.namespace.clone(), service_name(index)),
        addresses: vec![IpAddr::V4(address)],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            target: TargetPort::Number(8080),
        }],
        selector: Labels::new(),
        requested_families: None,
    }
}

fn slice(index: usize, backends: &[Pod]) -> EndpointSlice {
    let endpoint = |address: &IpAddr| SliceEndpoint { address: *address, ready: true, draining: false };
    EndpointSlice {
        key: SliceKey::new(backends[0].key.namespace.clone(), service_name(index)),
        service: Some(service_name(index)),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: backends.iter().flat_map(|pod| pod.addresses.iter().map(endpoint)).collect(),
    }
}
