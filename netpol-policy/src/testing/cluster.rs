//! A large cluster for benchmarks, the same in every run.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::model::{
    Labels, NAMESPACE_NAME_LABEL, NamedPort, Namespace, Object, Peer, Peers, Pod, PodKey, Policy, PolicyKey, PortMatch,
    PortRange, Ports, Protocol, Requirement, Rule, Selector,
};

/// Returns the name of the local node. One percent of the pods of a [`cluster`] run on this node.
pub fn local_node() -> Arc<str> {
    "node-0".into()
}

/// Returns a cluster with `pods` pods on a hundred nodes and with `policies` policies. Each namespace has a hundred
/// pods of ten apps. Each policy allows ingress to one app from another app and from a namespace.
pub fn cluster(pods: usize, policies: usize) -> Vec<Object> {
    let namespaces = pods.div_ceil(100).max(1);
    let namespace = |index: usize| -> Arc<str> { format!("ns-{}", index % namespaces).into() };
    let app = |index: usize| -> Arc<str> { format!("app-{}", index % 10).into() };
    let with_label = |key: &str, value: Arc<str>| Selector {
        requirements: vec![Requirement::In(key.into(), vec![value])],
        invalid: false,
    };
    let mut objects = Vec::with_capacity(namespaces + pods + policies);
    objects.extend((0..namespaces).map(|index| Object::Namespace(Namespace::implicit(namespace(index)))));
    objects.extend((0..pods).map(|index| {
        let offset = u32::try_from(index).unwrap_or(u32::MAX);
        let address = IpAddr::V4(Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 2)).wrapping_add(offset)));
        Object::Pod(Pod {
            key: PodKey::new(namespace(index / 100), format!("pod-{index}")),
            node: Some(format!("node-{}", index % 100).into()),
            host_network: false,
            finished: false,
            deleting: false,
            created: 0,
            labels: Labels::from([("app".into(), app(index / 10))]),
            addresses: vec![address],
            ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            uid: None,
            workload: None,
            host_ports: None,
        })
    }));
    objects.extend((0..policies).map(|index| {
        let port = u16::try_from(8000 + index % 16).unwrap_or(8000);
        let ports = |port| Ports::Of(vec![PortMatch { protocol: Protocol::Tcp, port }]);
        let from_app = Peer::Pods { namespaces: None, pods: with_label("app", app(index / namespaces + 1)) };
        let from_namespace = Peer::Pods {
            namespaces: Some(with_label(NAMESPACE_NAME_LABEL, namespace(index + 1))),
            pods: Selector::everything(),
        };
        Object::Policy(Policy {
            key: PolicyKey::new(namespace(index), format!("policy-{index}")),
            pods: with_label("app", app(index / namespaces)),
            ingress: Some(vec![
                Rule { peers: Peers::Of(vec![from_app]), ports: ports(PortRange::Range(port, port)) },
                Rule { peers: Peers::Of(vec![from_namespace]), ports: ports(PortRange::Named("http".into())) },
            ]),
            egress: None,
            diagnostics: Vec::new(),
            mode: None,
        })
    }));
    objects
}
