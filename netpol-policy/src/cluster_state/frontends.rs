//! Frontends, with their owners and backends. A frontend is an address, port and protocol of a Service or hostPort.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::ClusterState;
use crate::index::Index;
use crate::model::{
    Backend, EndpointSlice, Frontend, FrontendAddress, Node, Pod, PodKey, Service, ServiceKey, SliceKey,
};

/// The owner of a frontend. If a frontend has several owners, it has the backends of all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendOwner {
    /// A port of this Service.
    Service(ServiceKey),
    /// A hostPort of this pod.
    HostPort(PodKey),
}

/// Indexes for frontends. Everything else is read from the objects when needed. In this file, "slice" means an
/// `EndpointSlice`, and "endpoint" means an endpoint in an `EndpointSlice`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frontends {
    /// The owners of each frontend.
    owners: Index<Frontend, FrontendOwner>,
    /// The slices of each Service.
    slices: Index<ServiceKey, SliceKey>,
    /// For each address, the slices that have an endpoint at this address.
    endpoints: Index<IpAddr, SliceKey>,
    /// For each address, the names of the nodes that have this address.
    nodes: Index<IpAddr, Arc<str>>,
}

impl Frontends {
    pub(super) fn add_service(&mut self, service: &Service) {
        for (frontend, _) in service.frontends() {
            self.owners.insert(frontend, FrontendOwner::Service(service.key.clone()));
        }
    }

    pub(super) fn remove_service(&mut self, service: &Service) {
        for (frontend, _) in service.frontends() {
            self.owners.remove(&frontend, &FrontendOwner::Service(service.key.clone()));
        }
    }

    pub(super) fn add_slice(&mut self, slice: &EndpointSlice) {
        if let Some(service) = slice.service_key() {
            self.slices.insert(service, slice.key.clone());
        }
        for endpoint in &slice.endpoints {
            self.endpoints.insert(endpoint.address, slice.key.clone());
        }
    }

    pub(super) fn remove_slice(&mut self, slice: &EndpointSlice) {
        if let Some(service) = slice.service_key() {
            self.slices.remove(&service, &slice.key);
        }
        for endpoint in &slice.endpoints {
            self.endpoints.remove(&endpoint.address, &slice.key);
        }
    }

    pub(super) fn add_pod(&mut self, pod: &Pod) {
        for (frontend, _) in pod.host_frontends() {
            self.owners.insert(frontend, FrontendOwner::HostPort(pod.key.clone()));
        }
    }

    pub(super) fn remove_pod(&mut self, pod: &Pod) {
        for (frontend, _) in pod.host_frontends() {
            self.owners.remove(&frontend, &FrontendOwner::HostPort(pod.key.clone()));
        }
    }

    pub(super) fn add_node(&mut self, node: &Node) {
        for address in &node.addresses {
            self.nodes.insert(*address, node.name.clone());
        }
    }

    pub(super) fn remove_node(&mut self, node: &Node) {
        for address in &node.addresses {
            self.nodes.remove(address, &node.name);
        }
    }
}

impl ClusterState {
    /// Returns the frontend for a connection to this address and port. Returns `None` if there is no such frontend:
    /// then the connection is evaluated by the address itself, not by backends.
    ///
    /// A frontend at exactly this address is preferred to a frontend at the addresses of all nodes (a nodePort). Also
    /// returns `None` for every address of the local node: connections to it are evaluated post-DNAT (after
    /// kube-proxy's address translation).
    pub fn frontend_at(&self, address: IpAddr, protocol: u8, port: u16) -> Option<Frontend> {
        if self.is_local_address(address) {
            return None;
        }
        let exact = Frontend { address: FrontendAddress::Address(address), port, protocol };
        if self.frontends.owners.contains(&exact) {
            return Some(exact);
        }
        let any_node = Frontend { address: FrontendAddress::any_node(address), ..exact };
        (self.is_node(address) && self.frontends.owners.contains(&any_node)).then_some(any_node)
    }

    /// Returns whether a Service or a hostPort has this frontend.
    pub fn has_frontend(&self, frontend: &Frontend) -> bool {
        self.frontends.owners.contains(frontend)
    }

    /// Returns the owners of a frontend.
    pub fn owners(&self, frontend: &Frontend) -> &[FrontendOwner] {
        self.frontends.owners.get(frontend)
    }

    /// Returns the possible backends of a frontend. For a Service, these are the endpoints that are ready, and those
    /// that are draining (terminating, but still serving): kube-proxy selects a draining endpoint if no endpoint is
    /// ready.
    pub fn backends(&self, frontend: &Frontend) -> BTreeSet<Backend> {
        let mut backends = BTreeSet::new();
        for owner in self.owners(frontend) {
            match owner {
                FrontendOwner::Service(key) => self.add_service_backends(key, frontend, &mut backends),
                FrontendOwner::HostPort(key) => self.add_host_port_backends(key, frontend, &mut backends),
            }
        }
        backends
    }

    fn add_host_port_backends(&self, key: &PodKey, frontend: &Frontend, backends: &mut BTreeSet<Backend>) {
        let Some(pod) = self.pods.get(key) else { return };
        for (_, port) in pod.host_frontends().filter(|(candidate, _)| candidate == frontend) {
            let addresses = pod.addresses.iter().filter(|address| address.is_ipv4() == frontend.is_ipv4());
            backends.extend(addresses.map(|address| Backend { address: *address, port }));
        }
    }

    fn add_service_backends(&self, key: &ServiceKey, frontend: &Frontend, backends: &mut BTreeSet<Backend>) {
        let Some(service) = self.services.get(key) else { return };
        for (_, port) in service.frontends().filter(|(candidate, _)| candidate == frontend) {
            for slice in self.frontends.slices.get(key).iter().filter_map(|key| self.slices.get(key)) {
                let targets = slice.ports.iter().filter(|target| target.is_target_of(port));
                for target in targets {
                    let eligible = slice.endpoints.iter().filter(|endpoint| endpoint.ready || endpoint.draining);
                    let eligible = eligible.filter(|endpoint| endpoint.address.is_ipv4() == frontend.is_ipv4());
                    backends.extend(eligible.map(|eligible| Backend { address: eligible.address, port: target.port }));
                }
            }
        }
    }

    /// Returns the Services that have this backend.
    pub fn services_of(&self, backend: Backend, protocol: u8) -> BTreeSet<ServiceKey> {
        self.service_ports_of(backend, protocol).into_iter().map(|(service, _)| service).collect()
    }

    /// Returns the Services that have this backend, with each port (or nodePort) that leads to it.
    pub fn service_ports_of(&self, backend: Backend, protocol: u8) -> BTreeSet<(ServiceKey, u16)> {
        let mut found = BTreeSet::new();
        for slice in self.frontends.endpoints.get(&backend.address).iter().filter_map(|key| self.slices.get(key)) {
            let mut endpoints = slice.endpoints.iter().filter(|endpoint| endpoint.ready || endpoint.draining);
            let service = slice.service_key().and_then(|key| self.services.get(&key));
            let Some(service) = service.filter(|_| endpoints.any(|endpoint| endpoint.address == backend.address))
            else {
                continue;
            };
            let targets = || slice.ports.iter().filter(|target| target.port == backend.port);
            let frontends = service.frontends().filter(|(frontend, port)| {
                frontend.protocol == protocol
                    && frontend.is_ipv4() == backend.address.is_ipv4()
                    && targets().any(|target| target.is_target_of(port))
            });
            found.extend(frontends.map(|(frontend, _)| (service.key.clone(), frontend.port)));
        }
        found
    }

    /// Returns all frontends that have a backend at this address, and maybe some that have no backend there.
    pub fn frontends_with_backend_at(&self, address: IpAddr) -> BTreeSet<Frontend> {
        let slices = self.frontends.endpoints.get(&address).iter().filter_map(|key| self.slices.get(key));
        let services = slices.filter_map(|slice| self.services.get(&slice.service_key()?));
        let of_services = services.flat_map(Service::frontends).map(|(frontend, _)| frontend);
        let of_pods = self.pods_with_address(address).flat_map(Pod::host_frontends).map(|(frontend, _)| frontend);
        of_services.chain(of_pods).collect()
    }

    /// Returns the addresses from `first` to `last` at which a slice has an endpoint. Not every endpoint is a backend
    /// of a Service.
    pub fn backends_between(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.frontends.endpoints.range(first..=last).map(|(address, _)| *address)
    }

    /// Returns whether a Service or hostPort has a frontend at exactly this address.
    pub fn has_frontend_at(&self, address: IpAddr) -> bool {
        // Frontends are sorted by address first. No frontend at this address is less than `lowest`.
        let lowest = Frontend { address: FrontendAddress::Address(address), port: 0, protocol: 0 };
        self.frontends.owners.range(lowest..).next().is_some_and(|(next, _)| next.address == lowest.address)
    }

    /// Returns whether an address belongs to any node.
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.frontends.nodes.contains(&address)
    }

    /// Returns the first node with this address.
    pub fn node_with_address(&self, address: IpAddr) -> Option<&Node> {
        self.frontends.nodes.get(&address).iter().find_map(|name| self.nodes.get(name))
    }

    /// Returns the addresses of all nodes.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.frontends.nodes.keys().copied()
    }

    /// Returns whether an address belongs to the local node.
    pub fn is_local_address(&self, address: IpAddr) -> bool {
        self.local_addresses.binary_search(&address).is_ok()
    }

    /// Returns all pods that list an address. If there are several, the address belongs to only one of them:
    /// [`ClusterState::pod_with_address`].
    pub fn pods_with_address(&self, address: IpAddr) -> impl Iterator<Item = &Pod> {
        self.pods_by_address.get(&address).iter().filter_map(|key| self.pods.get(key))
    }
}

#[cfg(test)]
mod tests;
