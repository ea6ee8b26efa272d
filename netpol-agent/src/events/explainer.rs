//! Explains the verdicts of flows, within a limit of CPU time.

use std::sync::Arc;

use netpol_api::FlowVerdict;
use netpol_dataplane::Dataplane;
use netpol_policy::model::Mode;

use super::agreement::Agreement;
use super::cache::{ExplanationCache, ExplanationKey};
use super::explain::{Explanation, explain};
use super::observed::Observed;
use super::shares::Shares;
use crate::clock::thread_time;
use crate::reconcile::Reconciler;

/// Maximum CPU time for explanations, in microseconds per second. An explanation evaluates every rule of a pod's
/// policies, and explanations must not cost more than enforcement.
const MAX_MICROS: u64 = 200_000;

/// Returns the part of [`MAX_MICROS`] for flows with this verdict. Denied flows have the largest part.
const fn micros_of(verdict: FlowVerdict) -> u64 {
    match verdict {
        FlowVerdict::Denied => MAX_MICROS / 2,
        FlowVerdict::Allowed | FlowVerdict::Shadow => MAX_MICROS / 4,
    }
}

/// Explains flows: which policies and rules lead to the verdict. Keeps the explanations in a cache.
#[derive(Debug)]
pub(super) struct Explainer {
    /// For each verdict, limits the CPU time in microseconds per second. Each pair of a pod and a direction has a
    /// share.
    shares: [Shares; FlowVerdict::ALL.len()],
    cache: ExplanationCache,
    /// Compares verdicts with those of the reference evaluator, the direct implementation of the policy API.
    agreement: Agreement,
}

impl Default for Explainer {
    fn default() -> Self {
        Self {
            shares: FlowVerdict::ALL.map(|verdict| Shares::new(micros_of(verdict))),
            cache: ExplanationCache::default(),
            agreement: Agreement::default(),
        }
    }
}

impl Explainer {
    /// Returns the counters of comparisons with the reference evaluator.
    pub(super) fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// Returns the explanation of an event if the cache has it.
    pub(super) fn known<D: Dataplane>(
        &mut self,
        observed: &Observed<'_>,
        reconciler: &Reconciler<D>,
    ) -> Option<Arc<Explanation>> {
        let key = observed.explanation_key()?;
        self.cache.get(&key, reconciler.engine_version())
    }

    /// Explains the verdict of an event. The error is the reason why there is no explanation.
    pub(super) fn explain<D: Dataplane>(
        &mut self,
        key: ExplanationKey,
        observed: &Observed<'_>,
        reconciler: &Reconciler<D>,
    ) -> Result<Arc<Explanation>, &'static str> {
        let explanation = match self.cache.get(&key, reconciler.engine_version()) {
            Some(known) => known,
            None => self.compute(key, observed, reconciler)?,
        };
        let differs = self.agreement.differs(observed, &explanation, reconciler);
        // An explanation that has another verdict than the event would be misleading.
        let allows = explanation.own.verdict == FlowVerdict::Allowed;
        if allows != (observed.verdict == FlowVerdict::Allowed) {
            return Err(if differs {
                "the reference evaluator has another verdict, which is a bug of netpol"
            } else {
                "policies have changed since the packet"
            });
        }
        Ok(explanation)
    }

    /// Computes an explanation that is not in the cache, if the limit of CPU time permits it.
    fn compute<D: Dataplane>(
        &mut self,
        key: ExplanationKey,
        observed: &Observed<'_>,
        reconciler: &Reconciler<D>,
    ) -> Result<Arc<Explanation>, &'static str> {
        // This number identifies a pod and a direction. All packets with the same number share one part of the limit.
        let pod_and_direction = observed.event.budget();
        let shares = &mut self.shares[observed.verdict as usize];
        if !shares.allow(pod_and_direction, observed.now) {
            return Err("the agent's time for explanations was used up");
        }
        let begun = thread_time();
        let mode = if key.shadow { Mode::Shadow } else { Mode::Enforce };
        let explanation = explain(reconciler.engine().cluster_state(), &key.packet, mode);
        let took = thread_time().saturating_sub(begun);
        shares.spend(pod_and_direction, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let explanation = Arc::new(explanation.ok_or("the pod was deleted")?);
        self.cache.insert(key, Arc::clone(&explanation));
        Ok(explanation)
    }
}
