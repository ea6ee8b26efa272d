//! The backends of Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{OfflineCluster, is_placeholder};
use crate::model::{Frontend, FrontendAddress, Service, ServicePort};
use crate::reference::End;

impl OfflineCluster {
    /// Returns the backends of a Service's port, each with its target port. A backend is a pod, or an address that no
    /// pod has. A Service without any address (cluster IP, external IP, …) has no backends here.
    pub fn backends(&self, service: &Service, port: &ServicePort) -> BTreeSet<(End, u16)> {
        let frontends = service.addresses.iter().map(|address| Frontend {
            address: FrontendAddress::Address(*address),
            port: port.port,
            protocol: port.protocol.number(),
        });
        let found = frontends.flat_map(|frontend| self.state.backends(&frontend));
        found.filter_map(|backend| Some((self.destination_of_endpoint(backend.address)?, backend.port))).collect()
    }

    /// Returns the endpoints of a headless Service: the pods that the Service selects, and the endpoints in its
    /// `EndpointSlice`s. The Service's DNS name resolves to their addresses. The Service's ports are not translated.
    pub fn headless_endpoints(&self, service: &Service) -> BTreeSet<End> {
        let pods = self.state.pods.values().filter(|pod| !pod.finished && service.selects(pod));
        let selected = pods.map(|pod| End::Pod(pod.key.clone()));
        let slices = self.state.slices.values().filter(|slice| slice.service_key().as_ref() == Some(&service.key));
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        selected.chain(endpoints.filter_map(|endpoint| self.destination_of_endpoint(endpoint.address))).collect()
    }

    /// Returns the destination of connections to an endpoint of a Service: the pod with the endpoint's address, or the
    /// address if no pod has it. Returns `None` if no pod has it and it is a placeholder (for an unknown address).
    fn destination_of_endpoint(&self, address: IpAddr) -> Option<End> {
        match self.state.peer_at(address) {
            Some(pod) => Some(End::Pod(pod.key.clone())),
            None => (!is_placeholder(address)).then_some(End::Address(address)),
        }
    }
}
