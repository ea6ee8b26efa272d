//! Writes the endpoint ID of each local pod into the map entries of its addresses. At other pods, the programs accept a
//! packet from one of these addresses only if it carries the ID of that pod's endpoint. The ID is written as long as
//! programs that mark packets are attached to the pod's interface.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_common::{IfIndex, endpoint_flags};

use super::Reconciler;
use super::desired::addresses_of;
use super::interface::{Interface, PodEndpoint};
use netpol_dataplane::Dataplane;

impl<D: Dataplane> Reconciler<D> {
    /// Writes the expected endpoint ID into the entry of each address, and removes all others.
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

    /// Removes the endpoint ID of an interface from the entries of its addresses: its packets no longer have this ID,
    /// or will have another one.
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
        match self.dataplane.set_address_endpoint(address, id) {
            Ok(()) if id == 0 => {
                self.owners.remove(&address);
            }
            Ok(()) => {
                self.owners.insert(address, id);
            }
            // `owners` still has the earlier ID, so the next pass retries. Until then, packets from this address are
            // checked less strictly or dropped.
            Err(error) => tracing::error!(%address, %error, "cannot write the endpoint ID of an address; retrying"),
        }
    }
}
