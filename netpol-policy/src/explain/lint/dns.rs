//! The cluster DNS.

use std::collections::BTreeSet;

use netpol_common::{Direction, protocol};

use super::services::{Target, added_rule, targets};
use crate::cluster_state::ClusterState;
use crate::explain::PolicyChange;
use crate::model::{Backend, Frontend, FrontendAddress, PolicyKey, ServiceKey};
use crate::reference::Packet;

/// The namespace of the cluster DNS.
const DNS_NAMESPACE: &str = "kube-system";
const DNS_PORT: u16 = 53;

/// The cluster DNS: the first Service in [`DNS_NAMESPACE`] that has the DNS port.
pub(super) fn cluster_dns(cluster_state: &ClusterState) -> Option<(ServiceKey, BTreeSet<Target>)> {
    let services = cluster_state.services.range(ServiceKey::new(DNS_NAMESPACE, "")..).map(|(_, service)| service);
    services.take_while(|service| *service.key.namespace == *DNS_NAMESPACE).find_map(|service| {
        let targets = targets(cluster_state, service, |port| port == DNS_PORT);
        (!targets.is_empty()).then(|| (service.key.clone(), targets))
    })
}

/// A DNS query of a pod.
pub(in crate::explain) struct DnsQuery {
    /// The cluster DNS, if the query is for it, with its backends.
    cluster_dns: Option<(ServiceKey, BTreeSet<Target>)>,
}

impl DnsQuery {
    /// Returns the query that a packet of a pod starts, if it is one: to the DNS port, or to a backend of the cluster DNS.
    pub(in crate::explain) fn of(cluster_state: &ClusterState, packet: &Packet) -> Option<Self> {
        if packet.direction == Direction::Ingress || ![protocol::UDP, protocol::TCP].contains(&packet.protocol) {
            return None;
        }
        let to = Backend { address: packet.remote, port: packet.port };
        let is_frontend = |service: &ServiceKey| {
            let service = cluster_state.services.get(service);
            let mut frontends = service.into_iter().flat_map(|service| service.frontends());
            let at =
                Frontend { address: FrontendAddress::Address(to.address), port: to.port, protocol: packet.protocol };
            frontends.any(|(frontend, _)| frontend == at)
        };
        let is_for_cluster_dns = |(service, targets): &(ServiceKey, BTreeSet<Target>)| {
            targets.iter().any(|(backend, _)| *backend == to) || is_frontend(service)
        };
        let cluster_dns = cluster_dns(cluster_state).filter(is_for_cluster_dns);
        (packet.port == DNS_PORT || cluster_dns.is_some()).then_some(Self { cluster_dns })
    }

    /// Returns the cluster DNS, if the query is for it, and a rule of a policy that allows it.
    pub(in crate::explain) fn rule_of(
        &self,
        cluster_state: &ClusterState,
        policy: &PolicyKey,
    ) -> Option<(&ServiceKey, Option<PolicyChange>)> {
        let (service, targets) = self.cluster_dns.as_ref()?;
        Some((service, added_rule(cluster_state, policy, targets)))
    }
}
