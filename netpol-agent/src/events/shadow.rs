//! Counts the flows that policies in shadow mode would deny. Flows with the same policies, workloads and port share a
//! counter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netpol_api::{FlowDirection, FlowEnd, FlowRecord, ShadowDenial, WorkloadEnd};
use netpol_dataplane::Dataplane;
use netpol_policy::model::{Mode, PolicyKey};

use super::describe::rfc3339;
use super::quota::Quota;
use crate::reconcile::Reconciler;

/// Maximum number of counters. Flows without a counter are counted together for each namespace.
const MAX_COUNTERS: usize = 4096;
/// Maximum number of counters for the pods of a namespace.
const MAX_OF_NAMESPACE: usize = 512;
/// Maximum number of counters for flows with the same source workload and the same [`ShadowKey::namespace`]. So a pod
/// that scans ports leaves room for the flows of other pods. All sources that are not pods count as one source.
const MAX_OF_SOURCE: usize = 256;
/// Maximum number of namespaces for which flows without a counter are counted.
const MAX_NAMESPACES: usize = 1024;
/// A counter stores the number of flows in each of the last `MINUTES` minutes.
const MINUTES: usize = 60;

/// What the flows of one counter have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ShadowKey {
    policies: Vec<String>,
    direction: FlowDirection,
    from: WorkloadEnd,
    to: WorkloadEnd,
    protocol: String,
    port: Option<u16>,
    reason: String,
}

impl ShadowKey {
    /// Returns the namespace of the policies and of the pod at which they would deny the flow.
    fn namespace(&self) -> Arc<str> {
        let pod = match self.direction {
            FlowDirection::Ingress => &self.to,
            FlowDirection::Egress => &self.from,
        };
        pod.namespace.as_deref().unwrap_or_default().into()
    }

    /// Returns a text that identifies the source workload and the result of [`Self::namespace`], see [`MAX_OF_SOURCE`].
    fn source(&self) -> Arc<str> {
        let WorkloadEnd { namespace, workload, pod, .. } = &self.from;
        let workload = workload.as_ref().map(|workload| (&workload.kind, &workload.name));
        format!("{} {namespace:?} {workload:?} {pod:?}", self.namespace()).into()
    }
}

/// The number of flows in each of the last minutes.
#[derive(Clone, Debug, Default)]
struct FlowsByMinute {
    /// The latest minute, as the number of minutes since 1970.
    latest: u64,
    /// The number of flows in each minute. The last item is for the latest minute.
    flows: Vec<u64>,
}

impl FlowsByMinute {
    fn add(&mut self, at: SystemTime, flows: u64) {
        let minute = minute_of(at);
        // The condition is true if the clock was set back. Without the reset, minutes in the future would count as
        // recent until the clock reaches them.
        if self.latest > minute + MINUTES as u64 {
            self.flows.clear();
        }
        if self.flows.is_empty() {
            self.latest = minute;
            self.flows.push(0);
        }
        while self.latest < minute {
            // After an hour without flows, all older minutes are outdated.
            if minute - self.latest > MINUTES as u64 {
                self.flows.clear();
                self.latest = minute - 1;
            }
            self.latest += 1;
            self.flows.push(0);
            if self.flows.len() > MINUTES {
                self.flows.remove(0);
            }
        }
        // An event may be older than the latest minute.
        let age = usize::try_from(self.latest - minute).unwrap_or(usize::MAX).min(self.flows.len() - 1);
        let index = self.flows.len() - 1 - age;
        self.flows[index] += flows;
    }

    /// Returns the number of flows since the start of the minute that contains this time.
    fn count_since(&self, since: SystemTime) -> u64 {
        let first = minute_of(since);
        let minutes = (0..=self.latest).rev().zip(self.flows.iter().rev());
        minutes.take_while(|(minute, _)| *minute >= first).map(|(_, flows)| flows).sum()
    }
}

fn minute_of(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60
}

#[derive(Clone, Debug)]
struct ShadowCounter {
    flows: FlowsByMinute,
    /// The time of the first flow.
    first: SystemTime,
    /// The time of the last flow.
    last: SystemTime,
}

/// All counters.
#[derive(Debug)]
pub struct ShadowFlows {
    /// Flows have been counted since this time.
    since: SystemTime,
    counters: HashMap<ShadowKey, ShadowCounter>,
    /// The numbers of counters, by [`ShadowKey::namespace`].
    namespaces: Quota,
    /// The numbers of counters, by [`ShadowKey::source`].
    sources: Quota,
    /// Flows without a counter, by namespace of the pod at which policies would deny them.
    other_by_namespace: HashMap<String, FlowsByMinute>,
    /// Flows without a counter that policies of any namespace may deny.
    other_of_any_namespace: FlowsByMinute,
    /// When old counters were removed for the last time.
    cleaned: SystemTime,
    /// Policies in shadow mode, and since when each is in this mode.
    policies: BTreeMap<PolicyKey, SystemTime>,
    /// The result of [`Reconciler::engine_version`] when `policies` was last updated. The engine's version changes when
    /// objects change.
    reviewed_version: Option<u64>,
}

impl Default for ShadowFlows {
    fn default() -> Self {
        Self {
            since: SystemTime::now(),
            counters: HashMap::new(),
            namespaces: Quota::new(MAX_COUNTERS, MAX_OF_NAMESPACE),
            sources: Quota::new(MAX_COUNTERS, MAX_OF_SOURCE),
            other_by_namespace: HashMap::new(),
            other_of_any_namespace: FlowsByMinute::default(),
            cleaned: SystemTime::now(),
            policies: BTreeMap::new(),
            reviewed_version: None,
        }
    }
}

impl ShadowFlows {
    /// Returns the time since which flows have been counted.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Counts flows that policies in shadow mode would deny.
    pub(super) fn count(&mut self, record: &FlowRecord, flows: u64, at: SystemTime) {
        let key = ShadowKey {
            policies: record.own_side().map(|side| side.policies.clone()).unwrap_or_default(),
            direction: record.direction,
            from: workload_end(&record.from),
            to: workload_end(&record.to),
            protocol: record.protocol.clone(),
            port: record.port,
            reason: record.reason.clone(),
        };
        if !self.counters.contains_key(&key) {
            let (namespace, source) = (key.namespace(), key.source());
            if !self.namespaces.has_room(&namespace) || !self.sources.has_room(&source) {
                return self.count_other(Some(&namespace), flows, at);
            }
            self.namespaces.add(&namespace);
            self.sources.add(&source);
        }
        let new = || ShadowCounter { flows: FlowsByMinute::default(), first: at, last: at };
        let counter = self.counters.entry(key).or_insert_with(new);
        counter.flows.add(at, flows);
        counter.first = counter.first.min(at);
        counter.last = counter.last.max(at);
    }

    /// Counts flows together, without a counter for each kind of flow: either only the number of the flows is known, or
    /// there are too many counters. `namespace`: the namespace of the policies that would deny the flows; `None` if it
    /// is not known.
    pub(super) fn count_other(&mut self, namespace: Option<&str>, flows: u64, at: SystemTime) {
        if flows == 0 {
            return;
        }
        let has_room = self.other_by_namespace.len() < MAX_NAMESPACES;
        let counter = match namespace {
            Some(namespace) if has_room || self.other_by_namespace.contains_key(namespace) => {
                self.other_by_namespace.entry(namespace.to_owned()).or_default()
            }
            _ => &mut self.other_of_any_namespace,
        };
        counter.add(at, flows);
    }

    /// Removes counters without a flow in the last hour, at most once a minute.
    fn remove_old(&mut self, now: SystemTime) {
        // An error means that the clock was set back.
        if now.duration_since(self.cleaned).is_ok_and(|passed| passed < Duration::from_mins(1)) {
            return;
        }
        self.cleaned = now;
        let limit = now.checked_sub(Duration::from_mins(MINUTES as u64)).unwrap_or(UNIX_EPOCH);
        self.counters.retain(|_, counter| counter.last >= limit);
        self.other_by_namespace.retain(|_, flows| flows.count_since(limit) > 0);
        if self.other_of_any_namespace.count_since(limit) == 0 {
            self.other_of_any_namespace = FlowsByMinute::default();
        }
        self.namespaces.set(self.counters.keys().map(ShadowKey::namespace));
        self.sources.set(self.counters.keys().map(ShadowKey::source));
    }

    /// Returns the counters with flows since this time. The counters with the most flows are first.
    pub fn denials(&self, since: SystemTime) -> Vec<ShadowDenial> {
        let counted = self.counters.iter().map(|(key, counter)| (key, counter, counter.flows.count_since(since)));
        let mut counted: Vec<_> = counted.filter(|(_, _, flows)| *flows > 0).collect();
        counted.sort_by(|(key, _, flows), (other_key, _, other_flows)| {
            other_flows.cmp(flows).then_with(|| key.cmp(other_key))
        });
        let denial = |(key, counter, flows): (&ShadowKey, &ShadowCounter, u64)| ShadowDenial {
            policies: key.policies.clone(),
            direction: key.direction,
            from: key.from.clone(),
            to: key.to.clone(),
            protocol: key.protocol.clone(),
            port: key.port,
            reason: key.reason.clone(),
            flows,
            first: rfc3339(counter.first),
            last: rfc3339(counter.last),
        };
        counted.into_iter().map(denial).collect()
    }

    /// Returns how many flows since this time have no counter.
    pub fn unlisted_flows(&self, since: SystemTime) -> u64 {
        let of_namespaces = self.other_by_namespace.values().chain([&self.other_of_any_namespace]);
        of_namespaces.map(|flows| flows.count_since(since)).sum()
    }

    /// Returns how many flows since this time have no counter, and may be flows that policies of this namespace would
    /// deny.
    pub fn unlisted_flows_of(&self, namespace: &str, since: SystemTime) -> u64 {
        let of_namespace = self.other_by_namespace.get(namespace).map_or(0, |other| other.count_since(since));
        of_namespace + self.other_of_any_namespace.count_since(since)
    }

    /// Removes old counters. If objects have changed, also finds out which policies are in shadow mode now.
    pub(super) fn review<D: Dataplane>(&mut self, reconciler: &Reconciler<D>, now: SystemTime) {
        self.remove_old(now);
        let version = reconciler.engine_version();
        if self.reviewed_version == Some(version) {
            return;
        }
        self.reviewed_version = Some(version);
        let cluster_state = reconciler.engine().cluster_state();
        let shadow = cluster_state.policies.values().filter(|policy| cluster_state.mode(policy) == Mode::Shadow);
        self.set_policies(shadow.map(|policy| policy.key.clone()).collect(), now);
    }

    /// Records which policies are in shadow mode now.
    fn set_policies(&mut self, policies: BTreeSet<PolicyKey>, now: SystemTime) {
        self.policies.retain(|policy, _| policies.contains(policy));
        for policy in policies {
            self.policies.entry(policy).or_insert(now);
        }
    }

    /// Returns since when a policy is in shadow mode; `None` if it is not in shadow mode.
    pub fn since_of(&self, policy: &PolicyKey) -> Option<SystemTime> {
        self.policies.get(policy).copied()
    }
}

/// Returns the workload of one end (source or destination) of a flow. If the end has no workload, returns its pod, node
/// or address.
fn workload_end(end: &FlowEnd) -> WorkloadEnd {
    let services = end.services.clone();
    if end.pod.is_some() {
        let pod = if end.workload.is_none() { end.pod.clone() } else { None };
        return WorkloadEnd {
            namespace: end.namespace.clone(),
            workload: end.workload.clone(),
            pod,
            services,
            ..WorkloadEnd::default()
        };
    }
    let address = end.address.filter(|_| end.node.is_none());
    WorkloadEnd { node: end.node.clone(), address, services, ..WorkloadEnd::default() }
}

#[cfg(test)]
mod tests {
    use netpol_api::{FlowSide, FlowVerdict, Workload};

    use super::super::describe::header;
    use super::*;

    /// Returns the record of a flow from a pod of Deployment shop/web to a port of Deployment shop/db. Policy shop/db
    /// would deny the flow.
    fn record(pod: &str, port: u16) -> FlowRecord {
        let end = |name: &str, workload: &str| FlowEnd {
            namespace: Some("shop".into()),
            pod: Some(name.into()),
            workload: Some(Workload { kind: "Deployment".into(), name: workload.into() }),
            address: Some([10, 1, 0, 1].into()),
            ..FlowEnd::default()
        };
        FlowRecord {
            header: header(SystemTime::now(), "n1"),
            verdict: FlowVerdict::Shadow,
            direction: FlowDirection::Ingress,
            reason: "no-rule".into(),
            from: end(pod, "web"),
            to: end("db-0", "db"),
            protocol: "TCP".into(),
            port: Some(port),
            egress: None,
            ingress: Some(FlowSide {
                verdict: FlowVerdict::Shadow,
                reason: "no-rule".into(),
                policies: vec!["shop/db".into()],
                policy_count: None,
                rule: None,
                nearest: None,
                fix: None,
                fix_omitted: false,
            }),
            unexplained: None,
            revoked_by: None,
            sender: None,
            hints: Vec::new(),
            suppressed: 0,
            length: 60,
        }
    }

    #[test]
    fn flows_between_the_same_workloads_are_counted_together_by_minute() {
        let mut shadow = ShadowFlows::default();
        let start = UNIX_EPOCH + Duration::from_hours(500_000);
        let minute = |minutes: u64| start + Duration::from_mins(minutes);
        shadow.count(&record("web-1", 5432), 2, minute(0));
        shadow.count(&record("web-2", 5432), 3, minute(10));
        shadow.count(&record("web-2", 5433), 1, minute(10));
        shadow.count(&record("web-1", 5432), 4, minute(9));
        let flows = |shadow: &ShadowFlows, since| {
            shadow.denials(since).iter().map(|denial| (denial.port, denial.flows)).collect::<Vec<_>>()
        };
        assert_eq!(flows(&shadow, minute(0)), [(Some(5432), 9), (Some(5433), 1)]);
        assert_eq!(flows(&shadow, minute(5)), [(Some(5432), 7), (Some(5433), 1)]);
        assert_eq!(flows(&shadow, minute(10)), [(Some(5432), 3), (Some(5433), 1)]);
        assert_eq!(flows(&shadow, minute(11)), []);
        shadow.count(&record("web-1", 5433), 1, minute(65));
        assert_eq!(flows(&shadow, minute(0)), [(Some(5432), 9), (Some(5433), 2)]);
        shadow.count(&record("web-1", 5432), 1, minute(1000));
        assert_eq!(flows(&shadow, minute(0))[1], (Some(5432), 1), "flows that are older than an hour are not counted");
        let denial = &shadow.denials(minute(1000))[0];
        assert_eq!(denial.from.workload.as_ref().map(|workload| workload.name.as_str()), Some("web"));
        assert_eq!((denial.from.pod.as_ref(), denial.from.address), (None, None));
    }

    #[test]
    fn the_number_of_counters_is_bounded() {
        let mut shadow = ShadowFlows::default();
        let now = SystemTime::now();
        let port = |port: usize| u16::try_from(port).expect("not a port");
        for number in 0..2 * MAX_COUNTERS {
            shadow.count(&record("web-1", port(number)), 1, now);
        }
        let since = now.checked_sub(Duration::from_mins(5)).expect("the clock is before 1970");
        assert_eq!(shadow.denials(since).len(), MAX_OF_SOURCE);
        let other = (2 * MAX_COUNTERS - MAX_OF_SOURCE) as u64;
        assert_eq!(
            (
                shadow.unlisted_flows(since),
                shadow.unlisted_flows_of("shop", since),
                shadow.unlisted_flows_of("bank", since)
            ),
            (other, other, 0)
        );
        // Other sources and other namespaces have room.
        let flow_from = |source: &str, namespace: &str, number: usize| {
            let mut record = record(source, port(number));
            (record.from.workload, record.to.namespace) = (None, Some(namespace.to_owned()));
            record
        };
        shadow.count(&flow_from("job", "shop", 0), 1, now);
        assert_eq!((shadow.denials(since).len(), shadow.unlisted_flows(since)), (MAX_OF_SOURCE + 1, other));
        for number in 0..2 * MAX_COUNTERS {
            shadow.count(&flow_from(&format!("web-{number}"), "bank", 0), 1, now);
        }
        assert_eq!(shadow.denials(since).len(), MAX_OF_SOURCE + 1 + MAX_OF_NAMESPACE);
        shadow.count_other(Some("bank"), 7, now);
        assert_eq!(shadow.unlisted_flows_of("bank", since), (2 * MAX_COUNTERS - MAX_OF_NAMESPACE) as u64 + 7);
        // Policies of any namespace may deny these flows.
        let before = ["shop", "bank", "other"].map(|namespace| shadow.unlisted_flows_of(namespace, since));
        shadow.count_other(None, 3, now);
        let after = ["shop", "bank", "other"].map(|namespace| shadow.unlisted_flows_of(namespace, since));
        assert_eq!(after, before.map(|flows| flows + 3));
        let later = now + Duration::from_hours(2);
        shadow.remove_old(later);
        shadow.count(&record("web-1", 60_000), 1, later);
        assert_eq!((shadow.denials(since).len(), shadow.unlisted_flows_of("bank", since)), (1, 0));
    }

    #[test]
    fn flows_are_counted_by_minute_after_the_clock_was_set_back() {
        let mut flows = FlowsByMinute::default();
        let start = UNIX_EPOCH + Duration::from_hours(500_000);
        flows.add(start + Duration::from_hours(24), 5);
        flows.add(start, 1);
        assert_eq!((flows.count_since(start), flows.count_since(start + Duration::from_mins(1))), (1, 0));
    }

    #[test]
    fn the_time_at_which_a_policy_entered_shadow_mode_is_kept() {
        let mut shadow = ShadowFlows::default();
        let (policy, start) = (PolicyKey::new("shop", "web"), SystemTime::now());
        shadow.set_policies([policy.clone()].into(), start);
        shadow.set_policies([policy.clone()].into(), start + Duration::from_secs(5));
        assert_eq!(shadow.since_of(&policy), Some(start));
        shadow.set_policies(BTreeSet::new(), start);
        assert_eq!(shadow.since_of(&policy), None);
    }
}
