//! Pods, namespaces and nodes.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Problems;
use super::ports::unknown_protocol;
use crate::model::{Labels, NAMESPACE_NAME_LABEL, NamedPort, Namespace, Node, Pod, PodKey, Problem, Protocol};

pub(super) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
}

pub(super) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

fn labels(metadata: &ObjectMeta) -> Labels {
    metadata.labels.iter().flatten().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

impl Namespace {
    /// Understands a namespace. `kubernetes.io/metadata.name` is derived, as the API server does, whatever the labels say.
    pub fn from_api(api: &core::Namespace) -> Self {
        let name: Arc<str> = name(&api.metadata).into();
        let labels = labels(&api.metadata).with(NAMESPACE_NAME_LABEL.into(), name.clone());
        Self { name, labels }
    }
}

impl Pod {
    /// Understands a pod, and lists what of it was not: addresses and ports that are none are left out.
    pub fn from_api(api: &core::Pod) -> (Self, Vec<Problem>) {
        let mut problems = Problems::default();
        let spec = api.spec.as_ref();
        let status = api.status.as_ref();
        let pod = Self {
            key: PodKey::new(namespace(&api.metadata), name(&api.metadata)),
            node: spec.and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty()).map(Into::into),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            finished: matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")),
            deleting: api.metadata.deletion_timestamp.is_some(),
            created: api.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            labels: labels(&api.metadata),
            addresses: status.map(|status| addresses(status, &mut problems)).unwrap_or_default(),
            ports: spec.map(|spec| named_ports(spec, &mut problems)).unwrap_or_default(),
        };
        (pod, problems.0)
    }
}

fn addresses(status: &core::PodStatus, problems: &mut Problems) -> Vec<IpAddr> {
    let many = status.pod_ips.iter().flatten().enumerate();
    let mut texts: Vec<(String, &str)> =
        many.map(|(index, ip)| (format!("status.podIPs[{index}].ip"), ip.ip.as_str())).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.iter().map(|ip| ("status.podIP".to_owned(), ip.as_str())));
    }
    let mut result: Vec<IpAddr> = Vec::new();
    for (field, text) in texts {
        if text.is_empty() {
            continue;
        }
        let Some(address) = address(text, &field, problems) else { continue };
        if result.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            problems.error(field, format!("{address} is a second address of its family; a pod has one per family"));
            continue;
        }
        result.push(address);
    }
    result
}

pub(super) fn address(text: &str, field: &str, problems: &mut Problems) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    if address.is_none() {
        problems.error(field, format!("`{text}` is not an IP address"));
    }
    address
}

fn named_ports(spec: &core::PodSpec, problems: &mut Problems) -> Vec<NamedPort> {
    let containers = spec.containers.iter().enumerate().map(|(i, container)| ("containers", i, container));
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(i, container)| ("initContainers", i, container));
    let mut result = Vec::new();
    for (list, i, container) in containers.chain(sidecars) {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            let field = format!("spec.{list}[{i}].ports[{j}]");
            let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else { continue };
            let protocol_name = port.protocol.as_deref().unwrap_or("TCP");
            let Some(protocol) = Protocol::from_name(protocol_name) else {
                problems.error(format!("{field}.protocol"), unknown_protocol(protocol_name));
                continue;
            };
            let Some(number) = u16::try_from(port.container_port).ok().filter(|&number| number != 0) else {
                let value = port.container_port;
                problems
                    .error(format!("{field}.containerPort"), format!("{value} is not a port; ports are 1 to 65535"));
                continue;
            };
            result.push(NamedPort { name: name.into(), protocol, port: number });
        }
    }
    result
}

impl Node {
    /// Understands a node, and lists what of it was not. Addresses of other types than `InternalIP` and `ExternalIP`
    /// are names, not addresses.
    pub fn from_api(api: &core::Node) -> (Self, Vec<Problem>) {
        let mut problems = Problems::default();
        let listed = api.status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate();
        let addresses = listed
            .filter(|(_, listed)| matches!(listed.type_.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|(index, listed)| {
                address(&listed.address, &format!("status.addresses[{index}].address"), &mut problems)
            })
            .collect();
        (Self { name: name(&api.metadata).into(), addresses }, problems.0)
    }
}
