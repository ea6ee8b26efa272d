//! An event of an eBPF program, with the data for all steps that record the event.

use std::time::{Instant, SystemTime};

use netpol_api::{FlowEnd, FlowVerdict};
use netpol_common::{Direction, EventKind, FlowEvent};
use netpol_dataplane::Dataplane;
use netpol_policy::model::PodKey;

use super::cache::ExplanationKey;
use super::packet;
use crate::reconcile::Reconciler;

/// An event of an eBPF program about a packet, with the data for all steps that record the event.
pub(super) struct Observed<'a> {
    pub(super) event: &'a FlowEvent,
    pub(super) verdict: FlowVerdict,
    /// The pod of the interface at which the packet was evaluated; `None` if it is unknown.
    pub(super) pod: Option<PodKey>,
    /// When the eBPF program sent the event.
    pub(super) time: SystemTime,
    /// When the agent processes the event.
    pub(super) now: Instant,
}

impl Observed<'_> {
    /// Returns the number of flows or denied packets that the event stands for: the one that caused the event, and
    /// those without an event because of the rate limit.
    pub(super) fn count(&self) -> u64 {
        1 + u64::from(self.event.suppressed)
    }

    /// Returns the namespace of the pod; empty if the pod is unknown.
    pub(super) fn namespace(&self) -> &str {
        self.pod.as_ref().map_or("", |pod| &*pod.namespace)
    }

    /// Returns the key of the event's explanation in the cache; `None` if the pod is unknown, or if policies did not
    /// decide the verdict.
    pub(super) fn explanation_key(&self) -> Option<ExplanationKey> {
        let packet = packet::of_event(self.event, self.pod.as_ref()?)?;
        let shadow = self.event.kind() == EventKind::Shadow;
        Some(ExplanationKey { packet, rule_set: self.event.rule_set, shadow })
    }

    /// Returns the pod that sent the packet, if the pod is on this node and the source address is not one of the pod's
    /// addresses. `from` describes the source address.
    pub(super) fn sender<D: Dataplane>(&self, from: &FlowEnd, reconciler: &Reconciler<D>) -> Option<String> {
        // 0: no pod of this node sent the packet. At egress, the sender is always the pod of the interface.
        let id = u32::from(self.event.source_endpoint);
        if id == 0 || self.event.direction != Direction::Ingress as u8 {
            return None;
        }
        let sending_endpoint = reconciler.pod_endpoints().find(|pod_endpoint| pod_endpoint.endpoint.id == id)?;
        let sender = sending_endpoint.pod.as_ref().map(ToString::to_string);
        sender.filter(|sender| from.pod_name().as_ref() != Some(sender))
    }
}
