//! Writes endpoint IDs to the addresses of this node's pods. Another pod accepts a packet from such an address only
//! with that source endpoint ID. The ID is written as long as programs that mark packets are attached to the pod's
//! interface.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_common::{IfIndex, endpoint_flags};

use super::Reconciler;
use super::desired::addresses_of;
use super::interface::{Interface, PodEndpoint};
use netpol_dataplane::Dataplane;
use netpol_node::TunnelEndpoints;

impl<D: Dataplane> Reconciler<D> {
    /// Writes the expected endpoint ID to each address.
    pub(super) fn reconcile_owners(&mut self) {
        let wanted = self.wanted_owners();
        let outdated: Vec<IpAddr> =
            self.owners.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        for address in outdated {
            self.set_owner(address, 0);
        }
        for (address, id) in wanted {
            if self.owners.get(&address) != Some(&id) {
                self.set_owner(address, id);
            }
        }
    }

    /// Returns the expected endpoint ID of each address. An orphaned endpoint keeps its address until another pod has
    /// it.
    fn wanted_owners(&self) -> BTreeMap<IpAddr, u32> {
        let marked = |known: &&PodEndpoint| known.marks && !known.endpoint.has(endpoint_flags::UNKNOWN);
        let (orphaned, others): (Vec<_>, Vec<_>) =
            self.pod_endpoints().filter(marked).partition(|known| known.is_orphaned());
        let owned = |PodEndpoint { endpoint, .. }: &PodEndpoint| {
            addresses_of(endpoint).map(|address| (address, endpoint.id)).collect::<Vec<_>>()
        };
        orphaned.into_iter().chain(others).flat_map(owned).collect()
    }

    /// Removes the endpoint ID of an interface from its addresses: its packets no longer have this ID, or will have
    /// another one.
    pub(super) fn clear_owner(&mut self, ifindex: IfIndex) {
        let Some(known) = self.interfaces.get_mut(&ifindex).and_then(Interface::endpoint_mut) else { return };
        known.marks = false;
        let id = known.endpoint.id;
        for address in addresses_of(&known.endpoint).collect::<Vec<_>>() {
            if self.owners.get(&address) == Some(&id) {
                self.set_owner(address, 0);
            }
        }
    }

    fn set_owner(&mut self, address: IpAddr, id: u32) {
        if id == 0 {
            self.owners.remove(&address);
        } else {
            self.owners.insert(address, id);
        }
        if let Err(error) = self.dataplane.set_address_endpoint(address, id) {
            // Retried with the next change of this address. Until then its packets are checked less strictly or
            // dropped.
            self.owners.remove(&address);
            tracing::error!(%address, %error, "cannot write the endpoint ID of an address");
        }
    }

    /// Writes which UDP ports and IP protocols of nodes are tunnel endpoints.
    pub(super) fn put_tunnels(&mut self) {
        let (mut local, mut others) = (TunnelEndpoints::default(), TunnelEndpoints::default());
        if !self.options.tunnels_to_node {
            local.extend(&self.snapshot.tunnels);
            others.extend(&TunnelEndpoints::standard());
            // The nodes of a cluster are configured alike.
            others.extend(&local);
        }
        match self.dataplane.put_tunnels(&local, &others) {
            Ok(()) => {
                tracing::info!(ports = ?local.ports, protocols = ?local.protocols, "tunnel endpoints of this node");
            }
            Err(error) => {
                tracing::error!(%error, "cannot write the tunnel endpoints; retrying after their next change");
            }
        }
    }
}
