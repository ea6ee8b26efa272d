//! Determines the desired endpoint of an interface. Nothing here changes anything.

use std::net::IpAddr;

use netpol_common::{DirectionPolicy, Endpoint, IfIndex, PortSetId, endpoint_flags};
use netpol_policy::model::PodKey;

use super::binding::Binding;
use super::interface::PodState;
use super::{QUARANTINE, Reconciler};
use crate::dataplane::Dataplane;

/// Policy of a direction in which everything is dropped.
const DROP_ALL: DirectionPolicy = DirectionPolicy { rule_set: QUARANTINE, any: PortSetId::NONE };

/// How to treat veths whose peer, in another namespace, never had the address of a known pod of this node. This
/// applies to every veth that leads to another namespace, whatever created it. The veth of a deleted pod is not
/// unknown: the endpoint stays as it was until the interface is removed or another pod has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum UnknownPods {
    /// Leave them alone.
    #[default]
    Allow,
    /// Drop all traffic until the pod is known.
    Deny,
}

impl<D: Dataplane> Reconciler<D> {
    /// Returns what is known about the pod of an interface.
    pub(super) fn pod_state(&self, ifindex: IfIndex) -> PodState {
        match self.pod_of(ifindex) {
            Some(pod) if self.pods.is_evaluated(pod) => PodState::Evaluated,
            Some(pod) => PodState::Unevaluated { overdue: self.pods.is_overdue(pod) },
            None if self.has_conflict(ifindex) => PodState::Conflict,
            None => PodState::Unbound,
        }
    }

    /// Returns the pod of an interface.
    pub(super) fn pod_of(&self, ifindex: IfIndex) -> Option<&PodKey> {
        self.interfaces.get(&ifindex)?.identity.pod.as_ref()
    }

    fn has_conflict(&self, ifindex: IfIndex) -> bool {
        self.interfaces.get(&ifindex).is_some_and(|interface| matches!(interface.identity.binding, Binding::Shut))
    }

    /// Returns the desired endpoint of an interface, without ID and generation. `None`: no endpoint.
    pub(super) fn desired_endpoint(&self, ifindex: IfIndex, pod: Option<&PodKey>) -> Option<Endpoint> {
        self.snapshot.veths.get(&ifindex)?;
        let Some(pod) = pod else {
            let is_left_alone =
                self.options.unknown_pods == UnknownPods::Allow || self.snapshot.uplinks.contains(&ifindex);
            let (ingress, egress) = (DirectionPolicy::OPEN, DirectionPolicy::OPEN);
            let unknown = Endpoint { ifindex, flags: endpoint_flags::UNKNOWN, ingress, egress, ..Endpoint::default() };
            return (!is_left_alone || self.has_conflict(ifindex)).then_some(unknown);
        };
        let policy = self.policies.get(pod)?;
        self.pods.get(pod)?;
        let mut desired = self.endpoint_of(ifindex, pod, [policy.ingress, policy.egress]);
        if policy.incomplete || self.failures.affects(&desired) {
            desired.flags |= endpoint_flags::INCOMPLETE;
        }
        if self.failures.is_prefix_missing() {
            for direction in [&mut desired.ingress, &mut desired.egress] {
                if direction.isolated() {
                    *direction = DROP_ALL;
                }
            }
        }
        Some(desired)
    }

    /// Returns an endpoint that drops all traffic of a pod until its policies are compiled.
    pub(super) fn shut_endpoint(&self, ifindex: IfIndex, pod: &PodKey) -> Endpoint {
        let shut = self.endpoint_of(ifindex, pod, [DROP_ALL; 2]);
        Endpoint { flags: shut.flags | endpoint_flags::INCOMPLETE, ..shut }
    }

    /// Returns an endpoint with the addresses that packets of the pod may have.
    fn endpoint_of(&self, ifindex: IfIndex, pod: &PodKey, [ingress, egress]: [DirectionPolicy; 2]) -> Endpoint {
        let mut endpoint = Endpoint { ifindex, ingress, egress, ..Endpoint::default() };
        for address in self.pods.get(pod).into_iter().flat_map(|pod| &pod.addresses) {
            match address {
                IpAddr::V4(v4) => endpoint.address_v4 = v4.octets(),
                IpAddr::V6(v6) => endpoint.address_v6 = v6.octets(),
            }
        }
        if let Some(Binding::Bound(bound)) = self.interfaces.get(&ifindex).map(|interface| &interface.identity.binding)
        {
            (endpoint.mac, endpoint.link_local) = (bound.mac, bound.link_local);
        }
        if self.options.source_guard {
            endpoint.flags |= endpoint_flags::SOURCE_GUARD;
        }
        endpoint
    }
}

pub(super) fn addresses_of(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let v4 = (endpoint.address_v4 != [0; 4]).then(|| IpAddr::from(endpoint.address_v4));
    let v6 = (endpoint.address_v6 != [0; 16]).then(|| IpAddr::from(endpoint.address_v6));
    v4.into_iter().chain(v6)
}
