//! Services and `EndpointSlices`.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Diagnostics;
use super::pod::{name, namespace, parse_address};
use super::ports::{port_number, protocol};
use crate::model::{
    Diagnostic, EndpointSlice, RequestedFamilies, Service, ServiceKey, ServicePort, SliceEndpoint, SliceKey, SlicePort,
    TargetPort,
};

/// An `EndpointSlice` has the name of its Service in this label.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

impl Service {
    /// Parses a Service. Invalid addresses and ports are omitted from the Service, and reported as diagnostics.
    ///
    /// kube-proxy ignores a Service that is an `ExternalName`, is headless or has no cluster IP yet. Such a Service has
    /// no addresses here. Connections to its DNS name are evaluated by the resolved address.
    pub fn from_api(api: &core::Service) -> (Self, Vec<Diagnostic>) {
        let mut diagnostics = Diagnostics::default();
        let key = ServiceKey::new(namespace(&api.metadata), name(&api.metadata));
        let addresses = if is_proxied(api) { addresses(api, &mut diagnostics) } else { Vec::new() };
        let listed = api.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).enumerate();
        let ports =
            listed.filter_map(|(index, port)| service_port(port, &format!("spec.ports[{index}]"), &mut diagnostics));
        let mut ports: Vec<_> = ports.collect();
        if !is_proxied(api) {
            // kube-proxy does not translate the NodePort of such a Service.
            for port in &mut ports {
                port.node_port = None;
            }
        }
        let spec = api.spec.as_ref();
        let selector =
            spec.and_then(|spec| spec.selector.as_ref()).filter(|_| !is_external_name(api)).into_iter().flatten();
        let selector = selector.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        let requested_families = requested_families(api);
        (Self { key, addresses, ports, selector, requested_families }, diagnostics.0)
    }
}

fn is_external_name(api: &core::Service) -> bool {
    api.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"))
}

/// Returns the address families that a Service requests for its cluster IPs. `None` if it already has cluster IPs, or
/// never gets any (headless or `ExternalName`). See
/// <https://kubernetes.io/docs/concepts/services-networking/dual-stack/>.
fn requested_families(api: &core::Service) -> Option<RequestedFamilies> {
    let spec = api.spec.as_ref().filter(|_| !is_external_name(api))?;
    let mut cluster_ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    if cluster_ips.any(|text| !text.is_empty()) {
        return None;
    }
    let is_dual_stack = matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack"));
    let requests =
        |family: &str| is_dual_stack || spec.ip_families.iter().flatten().any(|requested| requested == family);
    Some(RequestedFamilies { v4: requests("IPv4"), v6: requests("IPv6") })
}

/// Returns whether kube-proxy handles the Service: it has a cluster IP and is not an `ExternalName`.
fn is_proxied(api: &core::Service) -> bool {
    let Some(spec) = &api.spec else { return false };
    let mut cluster_ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    !is_external_name(api) && cluster_ips.any(|text| !matches!(text.as_str(), "" | "None"))
}

/// Returns the addresses that kube-proxy translates for a Service: cluster IPs, `externalIPs` and load balancer
/// addresses.
fn addresses(api: &core::Service, diagnostics: &mut Diagnostics) -> Vec<IpAddr> {
    let mut texts: Vec<(String, &str)> = Vec::new();
    if let Some(spec) = &api.spec {
        let cluster_ips = spec.cluster_ips.iter().flatten().enumerate();
        texts.extend(cluster_ips.map(|(index, text)| (format!("spec.clusterIPs[{index}]"), text.as_str())));
        if texts.is_empty() {
            texts.extend(spec.cluster_ip.iter().map(|text| ("spec.clusterIP".to_owned(), text.as_str())));
        }
        let external = spec.external_ips.iter().flatten().enumerate();
        texts.extend(external.map(|(index, text)| (format!("spec.externalIPs[{index}]"), text.as_str())));
    }
    let balancer = api.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten()).enumerate();
    // kube-proxy does not translate addresses with ipMode Proxy: packets to them go to the load balancer. See KEP-1860,
    // https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/1860-kube-proxy-IP-node-binding.
    let translated = ingress.filter(|(_, ingress)| ingress.ip_mode.as_deref() != Some("Proxy"));
    texts.extend(translated.filter_map(|(index, ingress)| {
        Some((format!("status.loadBalancer.ingress[{index}].ip"), ingress.ip.as_deref()?))
    }));
    let non_empty = texts.into_iter().filter(|(_, text)| !matches!(*text, "" | "None"));
    let mut addresses: Vec<IpAddr> =
        non_empty.filter_map(|(field, text)| parse_address(text, &field, diagnostics)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn service_port(api: &core::ServicePort, field: &str, diagnostics: &mut Diagnostics) -> Option<ServicePort> {
    let port = port_number(api.port, &format!("{field}.port"), diagnostics)?;
    Some(ServicePort {
        name: api.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(api.protocol.as_deref(), field, diagnostics)?,
        port,
        target: match &api.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(port),
            Some(IntOrString::Int(target)) => {
                TargetPort::Number(port_number(*target, &format!("{field}.targetPort"), diagnostics)?)
            }
            Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
        },
        node_port: match api.node_port {
            None | Some(0) => None,
            Some(port) => Some(port_number(port, &format!("{field}.nodePort"), diagnostics)?),
        },
    })
}

impl EndpointSlice {
    /// Parses a slice. Returns the slice, and diagnostics for the omitted parts. The endpoints of a slice with
    /// `addressType: FQDN` are omitted without a diagnostic: they are DNS names.
    pub fn from_api(api: &discovery::EndpointSlice) -> (Self, Vec<Diagnostic>) {
        let mut diagnostics = Diagnostics::default();
        let labels = api.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL)).filter(|name| !name.is_empty());
        let service = service.map(|name| Arc::from(name.as_str()));
        let listed = api.ports.iter().flatten().enumerate();
        let ports =
            listed.filter_map(|(index, port)| slice_port(port, &format!("ports[{index}]"), &mut diagnostics)).collect();
        let mut endpoints = Vec::new();
        if api.address_type != "FQDN" {
            for (index, endpoint) in api.endpoints.iter().enumerate() {
                endpoints.extend(slice_endpoints(endpoint, &format!("endpoints[{index}]"), &mut diagnostics));
            }
        }
        let key = SliceKey::new(namespace(&api.metadata), name(&api.metadata));
        (Self { key, service, ports, endpoints }, diagnostics.0)
    }
}

/// Parses a port of a slice. Returns `None` for a port without a number: in slices, this means all ports, but no port
/// of a Service has this meaning.
fn slice_port(api: &discovery::EndpointPort, field: &str, diagnostics: &mut Diagnostics) -> Option<SlicePort> {
    Some(SlicePort {
        name: api.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(api.protocol.as_deref(), field, diagnostics)?,
        port: port_number(api.port?, &format!("{field}.port"), diagnostics)?,
    })
}

/// Parses an endpoint of a slice. Returns one [`SliceEndpoint`] for each of its addresses.
fn slice_endpoints(api: &discovery::Endpoint, field: &str, diagnostics: &mut Diagnostics) -> Vec<SliceEndpoint> {
    // The defaults of missing conditions are those of `EndpointConditions` in the API documentation.
    let condition = |of: fn(&discovery::EndpointConditions) -> Option<bool>| api.conditions.as_ref().and_then(of);
    let ready = condition(|conditions| conditions.ready).unwrap_or(true);
    let serving = condition(|conditions| conditions.serving).unwrap_or(true);
    let draining = serving && condition(|conditions| conditions.terminating).unwrap_or(false);
    let listed = api.addresses.iter().enumerate();
    let addresses =
        listed.filter_map(|(index, text)| parse_address(text, &format!("{field}.addresses[{index}]"), diagnostics));
    addresses.map(|address| SliceEndpoint { address, ready, draining }).collect()
}
