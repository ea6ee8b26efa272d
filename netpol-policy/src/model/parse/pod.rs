//! Parses pods, namespaces and nodes.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::ports::{port_number, protocol};
use super::{Diagnostics, mode};
use crate::model::{
    Diagnostic, HostPort, HostPorts, Labels, MIRROR_ANNOTATION, NAMESPACE_NAME_LABEL, NamedPort, Namespace, Node, Pod,
    PodKey, PodWorkload, Protocol, Uid,
};

pub(super) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
}

pub(super) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

fn labels(metadata: &ObjectMeta) -> Labels {
    metadata.labels.iter().flatten().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

/// Returns the UID that the container runtime uses for the pod. For a static pod, this is the value of
/// [`MIRROR_ANNOTATION`], because its API object has another UID.
fn uid(metadata: &ObjectMeta) -> Option<Uid> {
    let static_pod = metadata.annotations.as_ref().and_then(|annotations| annotations.get(MIRROR_ANNOTATION));
    static_pod.or(metadata.uid.as_ref()).and_then(|text| Uid::parse(text))
}

/// Minimum number of digits at the end of the name of a `CronJob`'s Job. The digits are the scheduled time of the Job
/// in minutes since 1970. Source: `getJobName`, `pkg/controller/cronjob/utils.go` of Kubernetes.
const CRON_JOB_DIGITS: usize = 8;

/// Maximum length of an owner's name or kind in bytes: the length of the longest valid name of an object.
const MAX_OWNER_NAME: usize = 253;

/// Returns the object that controls a pod: the owner with `controller: true`. If the name of this owner shows that a
/// Deployment or `CronJob` created the owner, returns the Deployment or `CronJob`. The owner objects are not read.
fn workload(metadata: &ObjectMeta) -> Option<PodWorkload> {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let (kind, name) = (owner.kind.as_str(), owner.name.as_str());
    let hash = || metadata.labels.as_ref()?.get("pod-template-hash");
    let workload_of =
        |kind: &str, name: &str| PodWorkload { kind: truncated(kind).into(), name: truncated(name).into() };
    Some(match kind {
        // The name of a Deployment's ReplicaSet is the Deployment's name, `-` and the hash of the pod template.
        "ReplicaSet" => match hash().and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-')) {
            Some(deployment) if !deployment.is_empty() => workload_of("Deployment", deployment),
            _ => workload_of(kind, name),
        },
        "Job" => match name.rsplit_once('-') {
            Some((cron_job, time)) if is_cron_job_time(time) && !cron_job.is_empty() => {
                workload_of("CronJob", cron_job)
            }
            _ => workload_of(kind, name),
        },
        _ => workload_of(kind, name),
    })
}

/// Truncates the name or kind of an owner. The API server does not limit their length, and each flow record contains
/// them.
fn truncated(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_OWNER_NAME)]
}

fn is_cron_job_time(text: &str) -> bool {
    text.len() >= CRON_JOB_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Namespace {
    /// Parses a namespace. Sets the label `kubernetes.io/metadata.name`, as the API server does; another value of this
    /// label is replaced. Returns the namespace with diagnostics for invalid annotations of netpol.
    pub fn from_api(api: &core::Namespace) -> (Self, Vec<Diagnostic>) {
        let mut diagnostics = Diagnostics::default();
        let name: Arc<str> = name(&api.metadata).into();
        let labels = labels(&api.metadata).with(NAMESPACE_NAME_LABEL.into(), name.clone());
        let modes = mode::modes(&api.metadata, &mut diagnostics);
        (Self { name, labels, modes }, diagnostics.0)
    }
}

impl Pod {
    /// Parses a pod, and omits invalid addresses and ports. Returns the pod with diagnostics for these.
    pub fn from_api(api: &core::Pod) -> (Self, Vec<Diagnostic>) {
        let mut diagnostics = Diagnostics::default();
        let spec = api.spec.as_ref();
        let status = api.status.as_ref();
        let (ports, host_ports) = spec.map(|spec| ports(spec, &mut diagnostics)).unwrap_or_default();
        let pod = Self {
            key: PodKey::new(namespace(&api.metadata), name(&api.metadata)),
            uid: uid(&api.metadata),
            node: spec.and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty()).map(Into::into),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            finished: matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")),
            deleting: api.metadata.deletion_timestamp.is_some(),
            created: api.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            labels: labels(&api.metadata),
            addresses: status.map(|status| addresses(status, &mut diagnostics)).unwrap_or_default(),
            ports,
            workload: workload(&api.metadata),
            host_ports: (!host_ports.is_empty()).then(|| {
                let addresses = status.map(|status| host_addresses(status, &mut diagnostics)).unwrap_or_default();
                Box::new(HostPorts { addresses, ports: host_ports })
            }),
        };
        (pod, diagnostics.0)
    }
}

fn addresses(status: &core::PodStatus, diagnostics: &mut Diagnostics) -> Vec<IpAddr> {
    let items = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut result: Vec<IpAddr> = Vec::new();
    for (field, text) in address_fields("podIP", items, status.pod_ip.as_deref()) {
        let Ok(address) = text.parse::<IpAddr>() else {
            diagnostics.error(field, format!("`{text}` is not an IP address"));
            continue;
        };
        // This check comes before the check for a second address, so that the diagnostic names the reserved range.
        if let Some(reason) = reserved_range(address) {
            diagnostics.error(field, format!("{address} is {reason}, which no pod can have; it is ignored"));
            continue;
        }
        if result.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            diagnostics.error(
                field,
                format!("{address} is a second address of its family; a pod has one for each family; it is ignored"),
            );
            continue;
        }
        result.push(address);
    }
    result
}

fn host_addresses(status: &core::PodStatus, diagnostics: &mut Diagnostics) -> Vec<IpAddr> {
    let items = status.host_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let fields = address_fields("hostIP", items, status.host_ip.as_deref());
    fields.into_iter().filter_map(|(field, text)| parse_address(text, &field, diagnostics)).collect()
}

/// Returns why an address cannot be a pod's. Sources: the special-purpose registries of RFC 6890, RFC 4291 section
/// 2.5.5.2 (IPv4-mapped).
fn reserved_range(address: IpAddr) -> Option<&'static str> {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of \"this network\""),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("a reserved address"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("the unspecified address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4-mapped IPv6 address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if is_link_local => Some("a link-local address"),
        _ => None,
    }
}

/// Returns the path and the text of each address in a status. The addresses are in a list (`podIPs`), or only in a
/// single field (`podIP`), which old API servers set.
fn address_fields<'t>(
    field: &str,
    items: impl Iterator<Item = &'t str>,
    single: Option<&'t str>,
) -> Vec<(String, &'t str)> {
    let mut texts: Vec<_> =
        items.enumerate().map(|(index, text)| (format!("status.{field}s[{index}].ip"), text)).collect();
    if texts.is_empty() {
        texts.extend(single.map(|text| (format!("status.{field}"), text)));
    }
    texts.retain(|(_, text)| !text.is_empty());
    texts
}

pub(super) fn parse_address(text: &str, field: &str, diagnostics: &mut Diagnostics) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    if address.is_none() {
        diagnostics.error(field, format!("`{text}` is not an IP address"));
    }
    address
}

/// Returns the named ports and the hostPorts of containers and sidecars. A pod on the host network has no hostPorts,
/// because its ports are the node's.
fn ports(spec: &core::PodSpec, diagnostics: &mut Diagnostics) -> (Vec<NamedPort>, Vec<HostPort>) {
    let containers = spec.containers.iter().enumerate().map(|(i, container)| ("containers", i, container));
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(i, container)| ("initContainers", i, container));
    let (mut named, mut host_ports) = (Vec::new(), Vec::new());
    for (list, i, container) in containers.chain(sidecars) {
        for (j, api) in container.ports.iter().flatten().enumerate() {
            let field = format!("spec.{list}[{i}].ports[{j}]");
            let name = api.name.as_deref().filter(|name| !name.is_empty());
            let has_host_port = spec.host_network != Some(true) && api.host_port.is_some_and(|port| port != 0);
            if name.is_none() && !has_host_port {
                continue;
            }
            let protocol = protocol(api.protocol.as_deref(), &field, diagnostics);
            let port = port_number(api.container_port, &format!("{field}.containerPort"), diagnostics);
            let (Some(protocol), Some(port)) = (protocol, port) else { continue };
            named.extend(name.map(|name| NamedPort { name: name.into(), protocol, port }));
            if has_host_port {
                host_ports.extend(host_port(api, protocol, port, &field, diagnostics));
            }
        }
    }
    (named, host_ports)
}

fn host_port(
    api: &core::ContainerPort,
    protocol: Protocol,
    container_port: u16,
    field: &str,
    diagnostics: &mut Diagnostics,
) -> Option<HostPort> {
    let host_ip = api.host_ip.as_deref().filter(|text| !text.is_empty());
    let address = match host_ip {
        Some(text) => Some(parse_address(text, &format!("{field}.hostIP"), diagnostics)?),
        None => None,
    };
    let port = port_number(api.host_port?, &format!("{field}.hostPort"), diagnostics)?;
    Some(HostPort { address, protocol, port, container_port })
}

impl Node {
    /// Parses a node. Returns the node with diagnostics for invalid addresses. Addresses of types other than
    /// `InternalIP` and `ExternalIP` are host names and are omitted.
    pub fn from_api(api: &core::Node) -> (Self, Vec<Diagnostic>) {
        let mut diagnostics = Diagnostics::default();
        let listed = api.status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate();
        let addresses = listed
            .filter(|(_, listed)| matches!(listed.type_.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|(index, listed)| {
                parse_address(&listed.address, &format!("status.addresses[{index}].address"), &mut diagnostics)
            })
            .collect();
        (Self { name: name(&api.metadata).into(), addresses }, diagnostics.0)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    #[test]
    fn the_kind_and_the_name_of_an_owner_are_truncated() {
        let workload = |length: usize| {
            let text = "é".repeat(length);
            let owner =
                OwnerReference { kind: text.clone(), name: text, controller: Some(true), ..OwnerReference::default() };
            let metadata = ObjectMeta { owner_references: Some(vec![owner]), ..ObjectMeta::default() };
            let workload = workload(&metadata).expect("no workload");
            (workload.kind.len(), workload.name.len())
        };
        assert_eq!(workload(100), (200, 200));
        // `é` has two bytes, so 253 bytes would end in the middle of a character.
        assert_eq!(workload(100_000), (252, 252));
    }
}
