//! A revoked flow is an open flow that policies no longer allow. This module stores which change revoked each flow. So
//! all deny events of the flow report this change, and not a later change that affected the same endpoint.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_api::RevokedBy;
use netpol_common::FlowEvent;

use super::describe::rfc3339;
use crate::reconcile::BatchChange;

/// Maximum number of revoked flows that are stored.
const MAX_FLOWS: usize = 4096;
/// If a stored flow has no event for this time, its stored change is no longer used.
const MAX_AGE: Duration = Duration::from_mins(5);

/// The addresses, ports and protocol of a flow at an endpoint (a pod interface under enforcement).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FlowId {
    endpoint: u16,
    direction: u8,
    protocol: u8,
    source: ([u8; 16], [u8; 2]),
    destination: ([u8; 16], [u8; 2]),
}

/// Revoked flows. For each flow: the change that revoked it, and the time of its last event.
#[derive(Debug, Default)]
pub(super) struct RevokedFlows(HashMap<FlowId, (Arc<BatchChange>, Instant)>);

impl RevokedFlows {
    /// Returns the change that revoked the flow of an event. `last_change` is the last change that affected the
    /// endpoint of the event. If the flow is not stored yet, stores it with `last_change`, and returns this change.
    pub(super) fn revoked_by(
        &mut self,
        event: &FlowEvent,
        last_change: Option<&Arc<BatchChange>>,
        now: Instant,
    ) -> Option<RevokedBy> {
        let id = FlowId {
            endpoint: event.endpoint,
            direction: event.direction,
            protocol: event.protocol,
            source: (event.source, event.source_port),
            destination: (event.destination, event.destination_port),
        };
        if self.0.len() >= MAX_FLOWS && !self.0.contains_key(&id) {
            self.remove_one(id.endpoint);
        }
        let known = self.0.get(&id).filter(|(_, seen)| now.saturating_duration_since(*seen) < MAX_AGE);
        let change = Arc::clone(known.map(|(change, _)| change).or(last_change)?);
        self.0.insert(id, (Arc::clone(&change), now));
        Some(RevokedBy {
            objects: change.objects.clone(),
            object_count: change.object_count,
            generation: change.generation.0,
            time: rfc3339(change.received),
        })
    }

    /// Removes the flow of `endpoint` that had no event for the longest time. If `endpoint` has no flow, does the same
    /// for the endpoint that has the most flows.
    fn remove_one(&mut self, endpoint: u16) {
        let oldest = self.oldest_of(endpoint).or_else(|| {
            let mut counts: HashMap<u16, usize> = HashMap::new();
            self.0.keys().for_each(|id| *counts.entry(id.endpoint).or_default() += 1);
            let (largest, _) = counts.into_iter().max_by_key(|(_, flows)| *flows)?;
            self.oldest_of(largest)
        });
        oldest.map(|id| self.0.remove(&id));
    }

    fn oldest_of(&self, endpoint: u16) -> Option<FlowId> {
        let of_endpoint = self.0.iter().filter(|(id, _)| id.endpoint == endpoint);
        of_endpoint.min_by_key(|(_, (_, seen))| *seen).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use netpol_source::Generation;

    use super::*;

    /// Returns the change of a batch. Its generation is the number of the batch.
    fn change(number: u64) -> Arc<BatchChange> {
        Arc::new(BatchChange {
            generation: Generation(number),
            received: SystemTime::now(),
            objects: vec![format!("NetworkPolicy shop/p{number}")],
            object_count: 1,
        })
    }

    #[test]
    fn a_flow_keeps_the_change_that_revoked_it() {
        let mut flows = RevokedFlows::default();
        let now = Instant::now();
        let event = |port: u16| FlowEvent { endpoint: 1, source_port: port.to_be_bytes(), ..FlowEvent::default() };
        // Returns the generation of the change that revoked the flow. `last` is the generation of the last change.
        let mut generation = |port, last, now| {
            flows.revoked_by(&event(port), Some(&change(last)), now).map(|revoked| revoked.generation)
        };
        assert_eq!(generation(1, 5, now), Some(5));
        assert_eq!(generation(1, 6, now), Some(5), "change 6 did not revoke the flow");
        assert_eq!(generation(2, 6, now), Some(6));
        assert_eq!(generation(1, 7, now + MAX_AGE), Some(7));
        assert_eq!(flows.revoked_by(&event(3), None, now), None);
    }

    #[test]
    fn a_flood_of_flows_removes_flows_of_its_own_endpoint_only() {
        let mut flows = RevokedFlows::default();
        let (start, first_change, second_change) = (Instant::now(), change(1), change(2));
        let event =
            |endpoint, port: u16| FlowEvent { endpoint, source_port: port.to_be_bytes(), ..FlowEvent::default() };
        for port in 0..10 {
            flows.revoked_by(&event(1, port), Some(&first_change), start);
        }
        for port in 0..4300 {
            let now = start + Duration::from_millis(port.into());
            assert!(flows.revoked_by(&event(2, port), Some(&first_change), now).is_some());
            assert!(flows.0.len() <= MAX_FLOWS);
        }
        let now = start + Duration::from_secs(10);
        // A flow of a new endpoint replaces a flow of the endpoint that has the most flows.
        flows.revoked_by(&event(3, 0), Some(&first_change), now);
        let mut generation = |endpoint, port| {
            flows.revoked_by(&event(endpoint, port), Some(&second_change), now).map(|revoked| revoked.generation)
        };
        assert!((0..10).all(|port| generation(1, port) == Some(1)));
        assert_eq!((generation(2, 4299), generation(2, 0)), (Some(1), Some(2)));
    }
}
