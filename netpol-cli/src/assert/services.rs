//! Services as destinations of expectations: finds the backends and target ports of a Service.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use netpol_policy::model::{Protocol, ServiceKey, ServicePort};
use netpol_policy::offline::{AddressSet, OfflineCluster, PortSet};
use netpol_policy::reference::{ConnectionError, End};

use super::check::{Destination, Selected};
use super::expectations::Ports;

/// Returns the backends of a Service. Backends with the same target ports are one destination. `ports`: the ports of
/// the expectation. They mean ports of the Service, not target ports.
pub(super) fn destinations(cluster: &OfflineCluster, key: &ServiceKey, ports: &Ports) -> Result<Vec<Destination>> {
    let Some(service) = cluster.state().services.get(key) else {
        return Err(ConnectionError::NoSuchService(key.clone()).into());
    };
    if service.addresses.is_empty() {
        return Err(ConnectionError::NoServiceAddress(key.clone()).into());
    }
    let mut by_backend: BTreeMap<End, Vec<(Protocol, u16)>> = BTreeMap::new();
    for port in expected_ports(key, &service.ports, ports)? {
        let found = cluster.backends(service, port);
        if found.is_empty() {
            bail!(
                "Service {key} has no backend at port {}/{} in the input; add its pods or EndpointSlices, and check its \
                 selector and targetPort",
                port.port,
                port.protocol.name()
            );
        }
        for (backend, target) in found {
            by_backend.entry(backend).or_default().push((port.protocol, target));
        }
    }
    let mut by_ports: BTreeMap<PortSet, Selected> = BTreeMap::new();
    for (backend, targets) in by_backend {
        let selected = by_ports.entry(PortSet::of(targets)).or_default();
        match backend {
            End::Pod(key) => {
                selected.pods.insert(key);
            }
            End::Address(address) => {
                selected.addresses = selected.addresses.union(&AddressSet::of_addresses([address]));
            }
            // A backend is never a Service.
            End::Service(_) => {}
        }
    }
    let destination = |(ports, selected)| Destination { selected, ports, service: Some(key.clone()) };
    Ok(by_ports.into_iter().map(destination).collect())
}

/// Returns the ports of the Service that are among the ports of an expectation. An expectation without ports is about
/// all ports.
fn expected_ports<'s>(
    key: &ServiceKey,
    service_ports: &'s [ServicePort],
    ports: &Ports,
) -> Result<Vec<&'s ServicePort>> {
    let is_in_range = |port: &ServicePort, (protocol, first, last): (Protocol, u16, u16)| {
        port.protocol == protocol && (first..=last).contains(&port.port)
    };
    for (protocol, first, last) in ports.ranges() {
        if !service_ports.iter().any(|port| is_in_range(port, (protocol, first, last))) {
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            let name = |port: &ServicePort| format!("{}/{}", port.port, port.protocol.name());
            let names: Vec<String> = service_ports.iter().map(name).collect();
            let (wanted, names) = (format!("{range}/{}", protocol.name()), names.join(", "));
            return Err(ConnectionError::NoServicePort(key.clone(), wanted, names).into());
        }
    }
    let is_expected = |port: &&ServicePort| ports.set().contains(port.protocol, port.port);
    Ok(service_ports.iter().filter(is_expected).collect())
}
