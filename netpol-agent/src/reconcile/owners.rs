//! Writes the owner of each local pod's address into the map entry of the address. The owner is the endpoint ID of the
//! pod. The programs at other pods accept a packet from such an address only if the packet carries this ID (in
//! `skb->tc_index`). So an address has an owner only while programs on the pod's interface mark the pod's packets with
//! the ID.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_common::{IfIndex, endpoint_flags};

use super::Reconciler;
use super::desired::addresses_of;
use super::interface::{Interface, PodEndpoint};
use netpol_dataplane::Dataplane;

impl<D: Dataplane> Reconciler<D> {
    /// Makes the owners in the map entries equal to the expected owners.
    pub(super) fn reconcile_address_owners(&mut self) {
        let wanted = self.wanted_owners();
        let outdated: Vec<IpAddr> =
            self.address_endpoints.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        for address in outdated {
            self.set_owner(address, 0);
        }
        for (address, id) in wanted {
            if self.address_endpoints.get(&address) != Some(&id) {
                self.set_owner(address, id);
            }
        }
    }

    /// Returns the expected owner of each address. An orphaned endpoint (its pod is deleted) keeps its address until
    /// another pod has this address.
    fn wanted_owners(&self) -> BTreeMap<IpAddr, u32> {
        let marks_packets = |pod_endpoint: &&PodEndpoint| {
            pod_endpoint.marks_packets && !pod_endpoint.endpoint.has(endpoint_flags::UNKNOWN)
        };
        let (orphaned, others): (Vec<_>, Vec<_>) =
            self.pod_endpoints().filter(marks_packets).partition(|pod_endpoint| pod_endpoint.is_orphaned());
        let owned = |PodEndpoint { endpoint, .. }: &PodEndpoint| {
            addresses_of(endpoint).map(|address| (address, endpoint.id)).collect::<Vec<_>>()
        };
        // If two endpoints have the same address, the map keeps the ID of the later one. Orphaned endpoints come first,
        // so the endpoint of an existing pod becomes the owner.
        orphaned.into_iter().chain(others).flat_map(owned).collect()
    }

    /// Removes the owner from the entries of an interface's addresses. Called if packets of the interface no longer
    /// carry the endpoint ID, or will carry another one.
    pub(super) fn clear_address_endpoints(&mut self, ifindex: IfIndex) {
        let Some(pod_endpoint) = self.interfaces.get_mut(&ifindex).and_then(Interface::endpoint_mut) else { return };
        pod_endpoint.marks_packets = false;
        let id = pod_endpoint.endpoint.id;
        for address in addresses_of(&pod_endpoint.endpoint).collect::<Vec<_>>() {
            if self.address_endpoints.get(&address) == Some(&id) {
                self.set_owner(address, 0);
            }
        }
    }

    /// Writes the owner of an address. The ID 0 removes the owner.
    fn set_owner(&mut self, address: IpAddr, id: u32) {
        match self.dataplane.set_address_endpoint(address, id) {
            Ok(()) if id == 0 => {
                self.address_endpoints.remove(&address);
            }
            Ok(()) => {
                self.address_endpoints.insert(address, id);
            }
            // `address_endpoints` is not changed, so the next pass retries. Until then, packets from this address are
            // checked less strictly or dropped.
            Err(error) => tracing::error!(%address, %error, "cannot write the endpoint ID of an address; retrying"),
        }
    }
}
