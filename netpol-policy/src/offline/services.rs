//! The backends of Services.

use std::collections::BTreeSet;

use super::{OfflineCluster, is_placeholder};
use crate::model::{Frontend, FrontendAddress, Service, ServicePort};
use crate::reference::End;

impl OfflineCluster {
    /// Returns the backends of a Service's port, each with its own port: pods, and addresses that are not those of pods.
    /// Empty for a Service without a cluster IP.
    pub fn backends(&self, service: &Service, port: &ServicePort) -> BTreeSet<(End, u16)> {
        let frontends = service.addresses.iter().map(|address| Frontend {
            address: FrontendAddress::Address(*address),
            port: port.port,
            protocol: port.protocol.number(),
        });
        let found = frontends.flat_map(|frontend| self.state.backends(&frontend));
        let end = |backend: crate::model::Backend| match self.state.peer_at(backend.address) {
            Some(pod) => Some((End::Pod(pod.key.clone()), backend.port)),
            None => (!is_placeholder(backend.address)).then_some((End::Address(backend.address), backend.port)),
        };
        found.filter_map(end).collect()
    }
}
