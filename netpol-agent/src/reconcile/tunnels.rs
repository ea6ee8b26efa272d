//! Writes the tunnel endpoints of nodes into a map. Pods cannot send to these tunnel endpoints.

use super::Reconciler;
use netpol_dataplane::Dataplane;
use netpol_node::TunnelEndpoints;

impl<D: Dataplane> Reconciler<D> {
    /// Writes which UDP ports and IP protocols of nodes are tunnel endpoints.
    pub(super) fn put_tunnels(&mut self) {
        let (mut local, mut others) = (TunnelEndpoints::default(), TunnelEndpoints::default());
        if !self.options.tunnels_to_node {
            local.extend(&self.snapshot.tunnels);
            others.extend(&TunnelEndpoints::standard());
            // Other nodes are assumed to have the same tunnels as this one.
            others.extend(&local);
        }
        match self.dataplane.put_tunnels(&local, &others) {
            Ok(()) => {
                tracing::info!(
                    ports = ?local.ports, protocols = ?local.protocols,
                    "wrote the tunnel endpoints of this node"
                );
            }
            Err(error) => {
                tracing::error!(%error, "cannot write the tunnel endpoints; retrying after their next change");
            }
        }
    }
}
