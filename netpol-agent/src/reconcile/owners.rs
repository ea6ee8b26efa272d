//! Endpoint IDs at addresses: a packet from the address of a pod of this node is believed at other pods only where it carries
//! that pod's source endpoint ID. The ID stands at the address while programs are on the pod's interface that mark its packets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_common::{IfIndex, endpoint_flags};

use super::settle::addresses_of;
use super::{Held, Reconciler};
use crate::dataplane::Dataplane;
use crate::endpoints::TunnelEndpoints;

impl<D: Dataplane> Reconciler<D> {
    /// Writes the IDs that should stand at addresses.
    pub(super) fn settle_owners(&mut self) {
        let wanted = self.wanted_owners();
        let outdated: Vec<IpAddr> =
            self.owners.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        for address in outdated {
            self.own(address, 0);
        }
        for (address, id) in wanted {
            if self.owners.get(&address) != Some(&id) {
                self.own(address, id);
            }
        }
    }

    /// An interface of a pod that is gone keeps its address until another pod has it.
    fn wanted_owners(&self) -> BTreeMap<IpAddr, u32> {
        let marked = |held: &&Held| held.marks && !held.endpoint.has(endpoint_flags::UNKNOWN);
        let (orphaned, known): (Vec<&Held>, Vec<&Held>) =
            self.held.values().filter(marked).partition(|held| held.orphaned);
        let owned =
            |held: &Held| addresses_of(&held.endpoint).map(|address| (address, held.endpoint.id)).collect::<Vec<_>>();
        orphaned.into_iter().chain(known).flat_map(owned).collect()
    }

    /// Takes the ID of an interface from its addresses: its packets do not carry it any more, or will carry another one.
    pub(super) fn disown(&mut self, ifindex: IfIndex) {
        let Some(held) = self.held.get_mut(&ifindex) else { return };
        held.marks = false;
        let id = held.endpoint.id;
        for address in addresses_of(&held.endpoint).collect::<Vec<_>>() {
            if self.owners.get(&address) == Some(&id) {
                self.own(address, 0);
            }
        }
    }

    fn own(&mut self, address: IpAddr, id: u32) {
        if id == 0 {
            self.owners.remove(&address);
        } else {
            self.owners.insert(address, id);
        }
        if let Err(error) = self.dataplane.set_address_endpoint(address, id) {
            // Tried again with the next change of this address; until then its packets are checked less or dropped.
            self.owners.remove(&address);
            tracing::error!(%address, %error, "cannot write an endpoint ID to an address");
        }
    }

    /// Writes which ports and protocols of nodes are tunnel endpoints.
    pub(super) fn put_tunnels(&mut self) {
        let (mut local, mut others) = (TunnelEndpoints::default(), TunnelEndpoints::default());
        if !self.options.tunnels_to_node {
            local.extend(&self.survey.tunnels);
            others.extend(&TunnelEndpoints::standard());
            // Nodes of a cluster are configured alike.
            others.extend(&local);
        }
        match self.dataplane.put_tunnels(&local, &others) {
            Ok(()) => {
                tracing::info!(ports = ?local.ports, protocols = ?local.protocols, "tunnel endpoints of this node");
            }
            Err(error) => {
                tracing::error!(%error, "cannot write the tunnel endpoints; they are written after the next change");
            }
        }
    }
}
