//! Frontends of this world: which there are, who has them, and who may be behind them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::World;
use super::index::Index;
use crate::model::{Backend, EndpointSlice, Frontend, Node, Place, Pod, PodKey, Service, ServiceKey, SliceKey};

/// Who has a frontend. Several may have the same one; then the backends of all are behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A port of this Service.
    Service(ServiceKey),
    /// A hostPort of this pod.
    HostPort(PodKey),
}

/// What is known of frontends, as far as it is not read from the objects when asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frontends {
    owners: Index<Frontend, Owner>,
    slices: Index<ServiceKey, SliceKey>,
    /// The slices that have an endpoint there.
    endpoints: Index<IpAddr, SliceKey>,
    nodes: Index<IpAddr, Arc<str>>,
}

impl Frontends {
    pub(super) fn add_service(&mut self, service: &Service) {
        for (frontend, _) in service.frontends() {
            self.owners.insert(frontend, Owner::Service(service.key.clone()));
        }
    }

    pub(super) fn remove_service(&mut self, service: &Service) {
        for (frontend, _) in service.frontends() {
            self.owners.remove(&frontend, &Owner::Service(service.key.clone()));
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
            self.owners.insert(frontend, Owner::HostPort(pod.key.clone()));
        }
    }

    pub(super) fn remove_pod(&mut self, pod: &Pod) {
        for (frontend, _) in pod.host_frontends() {
            self.owners.remove(&frontend, &Owner::HostPort(pod.key.clone()));
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

impl World {
    /// The frontend that a connection to this address and port goes in at; `None`: it goes to the address itself. An own port of
    /// the address comes before those that every node has. At this node's own addresses there is none: who connects to them is
    /// judged by where the node sends it.
    pub fn frontend_at(&self, address: IpAddr, protocol: u8, port: u16) -> Option<Frontend> {
        if self.is_own(address) {
            return None;
        }
        let exact = Frontend { place: Place::Address(address), port, protocol };
        if self.frontends.owners.has(&exact) {
            return Some(exact);
        }
        let any_node = Frontend { place: Place::any_node(address), ..exact };
        (self.is_node(address) && self.frontends.owners.has(&any_node)).then_some(any_node)
    }

    /// Whether somebody has this frontend.
    pub fn has_frontend(&self, frontend: &Frontend) -> bool {
        self.frontends.owners.has(frontend)
    }

    /// Who has a frontend.
    pub fn owners(&self, frontend: &Frontend) -> &[Owner] {
        self.frontends.owners.get(frontend)
    }

    /// Who may be behind a frontend. Of a Service's endpoints: those that are ready, and those that drain, as a node that has no
    /// other of its own may still choose one of these.
    pub fn backends(&self, frontend: &Frontend) -> BTreeSet<Backend> {
        let mut backends = BTreeSet::new();
        for owner in self.owners(frontend) {
            match owner {
                Owner::Service(key) => self.add_endpoints(key, frontend, &mut backends),
                Owner::HostPort(key) => self.add_pod(key, frontend, &mut backends),
            }
        }
        backends
    }

    fn add_pod(&self, key: &PodKey, frontend: &Frontend, backends: &mut BTreeSet<Backend>) {
        let Some(pod) = self.pods.get(key) else { return };
        for (_, port) in pod.host_frontends().filter(|(known, _)| known == frontend) {
            let addresses = pod.addresses.iter().filter(|address| address.is_ipv4() == frontend.is_ipv4());
            backends.extend(addresses.map(|address| Backend { address: *address, port }));
        }
    }

    fn add_endpoints(&self, key: &ServiceKey, frontend: &Frontend, backends: &mut BTreeSet<Backend>) {
        let Some(service) = self.services.get(key) else { return };
        for (_, port) in service.frontends().filter(|(known, _)| known == frontend) {
            for slice in self.frontends.slices.get(key).iter().filter_map(|key| self.slices.get(key)) {
                let targets = slice.ports.iter().filter(|target| target.is_of(port));
                for target in targets {
                    let chosen = slice.endpoints.iter().filter(|endpoint| endpoint.ready || endpoint.draining);
                    let chosen = chosen.filter(|endpoint| endpoint.address.is_ipv4() == frontend.is_ipv4());
                    backends.extend(chosen.map(|chosen| Backend { address: chosen.address, port: target.port }));
                }
            }
        }
    }

    /// The Services that may send a connection here.
    pub fn services_behind(&self, backend: Backend, protocol: u8) -> BTreeSet<ServiceKey> {
        self.ports_before(backend, protocol).into_iter().map(|(service, _)| service).collect()
    }

    /// The same with the port, a nodePort among them, at which the connection goes in.
    pub fn ports_before(&self, backend: Backend, protocol: u8) -> BTreeSet<(ServiceKey, u16)> {
        let mut found = BTreeSet::new();
        for slice in self.frontends.endpoints.get(&backend.address).iter().filter_map(|key| self.slices.get(key)) {
            let mut endpoints = slice.endpoints.iter().filter(|endpoint| endpoint.ready || endpoint.draining);
            let service = slice.service_key().and_then(|key| self.services.get(&key));
            let Some(service) = service.filter(|_| endpoints.any(|endpoint| endpoint.address == backend.address))
            else {
                continue;
            };
            let targets = || slice.ports.iter().filter(|target| target.port == backend.port);
            let leading = service.frontends().filter(|(frontend, port)| {
                frontend.protocol == protocol
                    && frontend.is_ipv4() == backend.address.is_ipv4()
                    && targets().any(|target| target.is_of(port))
            });
            found.extend(leading.map(|(frontend, _)| (service.key.clone(), frontend.port)));
        }
        found
    }

    /// The frontends that may have a backend at this address, and some more.
    pub fn frontends_towards(&self, address: IpAddr) -> BTreeSet<Frontend> {
        let slices = self.frontends.endpoints.get(&address).iter().filter_map(|key| self.slices.get(key));
        let services = slices.filter_map(|slice| self.services.get(&slice.service_key()?));
        let of_services = services.flat_map(Service::frontends).map(|(frontend, _)| frontend);
        let of_pods = self.claimants(address).flat_map(Pod::host_frontends).map(|(frontend, _)| frontend);
        of_services.chain(of_pods).collect()
    }

    /// Addresses between these where some Service's backend may be.
    pub fn backends_between(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.frontends.endpoints.range(first..=last).copied()
    }

    /// Whether somebody has a frontend at this very address.
    pub fn is_service(&self, address: IpAddr) -> bool {
        let first = Frontend { place: Place::Address(address), port: 0, protocol: 0 };
        self.frontends.owners.range(first..).next().is_some_and(|next| next.place == first.place)
    }

    /// Whether it is some node's address.
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.frontends.nodes.has(&address)
    }

    /// The addresses of all nodes.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.frontends.nodes.keys().copied()
    }

    /// Whether it is an address of this node.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own_addresses.binary_search(&address).is_ok()
    }

    /// Live pods that claim an address, whoever of them has it.
    pub fn claimants(&self, address: IpAddr) -> impl Iterator<Item = &Pod> {
        self.claims.get(&address).iter().filter_map(|key| self.pods.get(key))
    }
}

#[cfg(test)]
mod tests;
