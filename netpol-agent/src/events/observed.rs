//! An event, and what is known about it.

use std::time::{Instant, SystemTime};

use netpol_api::{FlowEnd, FlowVerdict};
use netpol_common::{Direction, EventKind, FlowEvent};
use netpol_dataplane::Dataplane;
use netpol_policy::model::PodKey;

use super::cache::ExplanationKey;
use super::packet;
use crate::reconcile::Reconciler;

/// An event, and what is known about it.
pub(super) struct Observed<'a> {
    pub(super) event: &'a FlowEvent,
    pub(super) verdict: FlowVerdict,
    pub(super) pod: Option<PodKey>,
    pub(super) time: SystemTime,
    pub(super) now: Instant,
}

impl Observed<'_> {
    /// The number of flows that the event stands for, or of denied packets.
    pub(super) fn count(&self) -> u64 {
        1 + u64::from(self.event.suppressed)
    }

    /// Returns the namespace of the pod.
    pub(super) fn namespace(&self) -> &str {
        self.pod.as_ref().map_or("", |pod| &*pod.namespace)
    }

    /// Returns the key of the explanation; `None` if policies did not decide.
    pub(super) fn explanation_key(&self) -> Option<ExplanationKey> {
        let packet = packet::of_event(self.event, self.pod.as_ref()?)?;
        let shadow = self.event.kind() == EventKind::Shadow;
        Some(ExplanationKey { packet, rule_set: self.event.rule_set, shadow })
    }

    /// Returns the local pod that sent the packet, if the source address is not that pod's. `from`: the source.
    pub(super) fn sender<D: Dataplane>(&self, from: &FlowEnd, reconciler: &Reconciler<D>) -> Option<String> {
        let id = u32::from(self.event.source_endpoint);
        if id == 0 || self.event.direction != Direction::Ingress as u8 {
            return None;
        }
        let held = reconciler.pod_endpoints().find(|held| held.endpoint.id == id)?;
        let sender = held.pod.as_ref().map(ToString::to_string);
        sender.filter(|sender| from.pod_name().as_ref() != Some(sender))
    }
}
