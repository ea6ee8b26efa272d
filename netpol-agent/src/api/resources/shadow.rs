//! Reports what policies in shadow mode would have denied. Such policies are evaluated, but not enforced.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netpol_api::{ShadowPolicy, ShadowReport, parameters, parse_duration};
use netpol_dataplane::Dataplane;

use crate::events::{Reporter, rfc3339};
use crate::reconcile::Reconciler;

/// The period for which denials are requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowQuery {
    /// The length of the period, which ends now.
    pub since: Duration,
}

impl ShadowQuery {
    /// Parses a query string. Without `since`, the period is the last hour.
    ///
    /// # Errors
    /// If a parameter is not known or has an invalid value.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self { since: Duration::from_hours(1) };
        for (name, value) in parameters(query)? {
            match name.as_str() {
                "since" => parsed.since = parse_duration(&value).map_err(|error| format!("since: {error}"))?,
                _ => return Err(format!("`{name}` is not a parameter; use since")),
            }
        }
        Ok(parsed)
    }
}

/// Returns the flows that policies in shadow mode would have denied. `generation` is the number of the last batch of
/// changes that is enforced. The engine must be available (not compiling).
pub fn shadow<D: Dataplane>(
    reconciler: &Reconciler<D>,
    reporter: &Reporter,
    query: ShadowQuery,
    generation: u64,
) -> ShadowReport {
    let period_start = SystemTime::now().checked_sub(query.since).unwrap_or(UNIX_EPOCH);
    let flows = reporter.shadow();
    ShadowReport {
        node: reconciler.node().to_owned(),
        generation,
        since: rfc3339(period_start),
        collected_since: rfc3339(flows.since()),
        observe: reconciler.observes(),
        policies: policies(reconciler, reporter, period_start),
        unlisted_flows: flows.unlisted_flows(period_start),
        items: flows.denials(period_start),
    }
}

/// Returns the policies in shadow mode that select pods of this node.
fn policies<D: Dataplane>(
    reconciler: &Reconciler<D>,
    reporter: &Reporter,
    period_start: SystemTime,
) -> Vec<ShadowPolicy> {
    let unevaluated = reconciler.unevaluated_shadow();
    let listed = reconciler.engine().policies_on_node().filter_map(|listed| {
        let shadow_mode_since = reporter.shadow().since_of(&listed.policy.key)?;
        let key = &listed.policy.key;
        let reason = unevaluated.get(key);
        Some(ShadowPolicy {
            policy: key.to_string(),
            pods: listed.pods.len(),
            since: rfc3339(shadow_mode_since),
            evaluated: reason.is_none(),
            not_evaluated_because: reason.map(ToString::to_string),
            unlisted_flows: reporter.shadow().unlisted_flows_of(&key.namespace, period_start),
        })
    });
    listed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_the_only_parameter_of_the_query() {
        let minutes = |minutes| ShadowQuery { since: Duration::from_mins(minutes) };
        assert_eq!(ShadowQuery::parse(""), Ok(minutes(60)));
        assert_eq!(ShadowQuery::parse("since=5m"), Ok(minutes(5)));
        for query in ["since=yesterday", "policy=shop/web"] {
            assert!(ShadowQuery::parse(query).is_err(), "{query}");
        }
    }
}
