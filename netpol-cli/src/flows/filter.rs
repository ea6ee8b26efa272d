//! Selects the flows to show. Agents apply one part of the filter, and this command applies the part that agents do not
//! support.

use anyhow::{Result, bail};
use netpol_api::{FlowQuery, Record};

use super::EndMatch;
use crate::args::FlowsOptions;
use crate::scope::Scope;

/// The default of `--last`.
const DEFAULT_LAST: usize = 100;
/// The default of `--last` with `--follow`.
const DEFAULT_LAST_WITH_FOLLOW: usize = 10;

/// A filter of flows.
pub(crate) struct Filter {
    /// The part that agents apply.
    pub(crate) query: FlowQuery,
    from: Option<EndMatch>,
    to: Option<EndMatch>,
    scope: Scope,
}

impl Filter {
    pub(crate) fn new(options: &FlowsOptions, scope: Scope) -> Result<Self> {
        let default = &scope.default_namespace;
        let policy = match options.policy.as_deref() {
            Some(policy) if policy.contains('/') => Some(policy.to_owned()),
            Some(policy) => Some(format!("{default}/{policy}")),
            None => None,
        };
        // Without `-n`, the scope has the namespace of the kubeconfig's context. Flows are not limited to this
        // namespace if `--from`, `--to` or `--policy` contains a namespace.
        let has_namespace_option = options.scope.namespace.is_some();
        let names_namespace = [&options.from, &options.to].into_iter().flatten().any(EndMatch::names_namespace)
            || options.policy.as_deref().is_some_and(|policy| policy.contains('/'));
        let default_last = if options.follow { DEFAULT_LAST_WITH_FOLLOW } else { DEFAULT_LAST };
        let query = FlowQuery {
            follow: options.follow,
            since: options.since,
            last: options.last.or_else(|| options.since.is_none().then_some(default_last)),
            verdicts: options.verdicts.clone(),
            from: options.from.as_ref().and_then(|end| end.filter(default)),
            to: options.to.as_ref().and_then(|end| end.filter(default)),
            port: options.port.clone(),
            policy,
            namespace: scope.namespace.clone().filter(|_| has_namespace_option || !names_namespace),
            labels: scope.labels.is_some(),
        };
        // Agents parse the query in the same way. Report an invalid query before it is sent.
        if let Err(error) = FlowQuery::parse(&query.to_query()) {
            bail!("{error}");
        }
        Ok(Self { query, from: options.from.clone(), to: options.to.clone(), scope })
    }

    /// Returns the path of the request.
    pub(crate) fn path(&self) -> String {
        // If this command hides some of the flows that agents send, only this command may apply `last`. If agents
        // applied it, they could omit flows that this command would show.
        let mut query = self.query.clone();
        if self.is_narrower_than_query() {
            query.last = None;
        }
        format!("/v1/flows?{}", query.to_query())
    }

    /// Returns whether this filter accepts fewer flows than the query that agents apply.
    fn is_narrower_than_query(&self) -> bool {
        let is_narrower = |end: &EndMatch| matches!(end, EndMatch::Workload(..) | EndMatch::Service(..));
        self.scope.labels.is_some() || [&self.from, &self.to].into_iter().flatten().any(is_narrower)
    }

    /// Returns whether to show a record that an agent returned.
    pub(crate) fn matches(&self, record: &Record) -> bool {
        let (from_end, to_end) = match record {
            Record::Flow(flow) => (&flow.from, &flow.to),
            Record::FlowTotals(totals) => (&totals.from, &totals.to),
            Record::Lost(_) => return true,
            // A summary has no labels, workloads or Services to compare.
            Record::Multicast(_) | Record::RateLimited(_) => return !self.is_narrower_than_query(),
        };
        let default = &self.scope.default_namespace;
        let has_labels = || {
            let labels = [&from_end.labels, &to_end.labels];
            labels.into_iter().flatten().any(|labels| self.scope.has_labels(labels))
        };
        self.from.as_ref().is_none_or(|from| from.matches(from_end, default))
            && self.to.as_ref().is_none_or(|to| to.matches(to_end, default))
            && (self.scope.labels.is_none() || has_labels())
    }
}
