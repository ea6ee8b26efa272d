//! Determines the desired endpoint of an interface: the map entry with the addresses and policies of its pod. Nothing
//! here changes any state.

use std::net::IpAddr;

use netpol_common::{DirectionPolicy, Endpoint, IfIndex, PortSetId, endpoint_flags};
use netpol_policy::model::PodKey;

use super::binding::Binding;
use super::interface::Phase;
use super::{QUARANTINE, Reconciler};
use netpol_dataplane::Dataplane;

/// Policy of a direction in which everything is dropped.
const DROP_ALL: DirectionPolicy = DirectionPolicy { rule_set: QUARANTINE, any: PortSetId::NONE };

/// How to treat veths of unknown pods. A veth belongs to an unknown pod if its other end is in another network
/// namespace and never had the address of a known pod of this node. It does not matter which program created the veth.
/// A deleted pod is not unknown: its endpoint stays as it was until the interface is removed or another pod has the
/// address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum UnknownPods {
    /// Leave them alone.
    #[default]
    Allow,
    /// Drop all traffic until the pod is known.
    Deny,
}

impl<D: Dataplane> Reconciler<D> {
    /// Returns the pod of an interface.
    pub(super) fn pod_of(&self, ifindex: IfIndex) -> Option<&PodKey> {
        self.interfaces.get(&ifindex)?.identity.pod.as_ref()
    }

    /// Returns the desired endpoint of an interface, without ID and version, or `None` if it should have no endpoint.
    /// `pod`: the pod of the interface, or `None` if the pod is unknown. `phase`: how the endpoint relates to the pod.
    pub(super) fn desired_endpoint(&self, ifindex: IfIndex, pod: Option<&PodKey>, phase: Phase) -> Option<Endpoint> {
        self.snapshot.veths.get(&ifindex)?;
        let interface = self.interfaces.get(&ifindex)?;
        let Some(pod) = pod else {
            let is_left_alone =
                self.options.unknown_pods == UnknownPods::Allow || self.snapshot.uplinks.contains(&ifindex);
            // Because of the flag `UNKNOWN`, all traffic is dropped, whatever the policies are.
            let (ingress, egress) = (DirectionPolicy::OPEN, DirectionPolicy::OPEN);
            let unknown = Endpoint { ifindex, flags: endpoint_flags::UNKNOWN, ingress, egress, ..Endpoint::default() };
            return (!is_left_alone || interface.identity.binding.is_conflict()).then_some(unknown);
        };
        let mut desired = Endpoint { ifindex, ..Endpoint::default() };
        for address in &self.pods.get(pod)?.addresses {
            match address {
                IpAddr::V4(v4) => desired.address_v4 = v4.octets(),
                IpAddr::V6(v6) => desired.address_v6 = v6.octets(),
            }
        }
        if let Binding::Bound(bound) = &interface.identity.binding {
            (desired.mac, desired.link_local) = (bound.mac, bound.link_local);
        }
        if self.options.anti_spoofing {
            desired.flags |= endpoint_flags::ANTI_SPOOFING;
        }
        // In phase `Shut`, the policies are not compiled yet. The flag sets the reason of drops: `tables-incomplete`.
        if phase == Phase::Shut {
            desired.flags |= endpoint_flags::INCOMPLETE;
            (desired.ingress, desired.egress) = (DROP_ALL, DROP_ALL);
            return Some(desired);
        }
        let policy = self.policies.get(pod)?;
        (desired.ingress, desired.egress) = (policy.ingress, policy.egress);
        (desired.shadow_ingress, desired.shadow_egress) = (policy.shadow_ingress, policy.shadow_egress);
        if policy.incomplete || self.failures.affects([desired.ingress, desired.egress]) {
            desired.flags |= endpoint_flags::INCOMPLETE;
        }
        // While a map entry is missing, policies in shadow mode would report too many denials, so they are not
        // evaluated.
        if self.failures.affects([desired.shadow_ingress, desired.shadow_egress]) {
            (desired.shadow_ingress, desired.shadow_egress) = (DirectionPolicy::OPEN, DirectionPolicy::OPEN);
        }
        // If the map entry of an `except` is missing, its addresses could be allowed by the block's `cidr`.
        if self.failures.is_prefix_missing() {
            for direction in [&mut desired.ingress, &mut desired.egress] {
                if direction.isolated() {
                    *direction = DROP_ALL;
                }
            }
        }
        Some(desired)
    }
}

/// Returns the addresses of an endpoint, without its link-local address.
pub(super) fn addresses_of(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let v4 = (endpoint.address_v4 != [0; 4]).then(|| IpAddr::from(endpoint.address_v4));
    let v6 = (endpoint.address_v6 != [0; 16]).then(|| IpAddr::from(endpoint.address_v6));
    v4.into_iter().chain(v6)
}
