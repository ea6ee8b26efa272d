//! Compares the compiled tables with the reference after each change of random sequences of events.
//!
//! `NETPOL_CASES` sets the number of sequences.

use std::collections::BTreeMap;

use netpol_common::{Reason, RuleSetId};
use netpol_policy::cluster_state::{ClusterState, Event, Owner};
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::model::PodKey;
use netpol_policy::reference::evaluate;
use netpol_policy::tables::{Change, EndpointPolicy, Tables};
use netpol_policy::testing::{Probe, event, expected, is_among_backends, probes};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

fn cases() -> u32 {
    std::env::var("NETPOL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

fn scope() -> NodeScope {
    NodeScope::Node("node-1".into())
}

/// The verdict on each probe, and whether it is evaluated post-DNAT, too.
type Verdicts = BTreeMap<PodKey, Vec<(Reason, bool)>>;

fn of_tables(tables: &Tables, cluster_state: &ClusterState, probes: &[Probe]) -> Verdicts {
    let verdicts = |(pod, policy): (&PodKey, EndpointPolicy)| {
        let own = cluster_state.pods.get(pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
        let evaluations = probes.iter().map(|probe| tables.evaluate(policy, own, &probe.at(pod)));
        (pod.clone(), evaluations.map(|evaluation| (evaluation.reason, evaluation.recheck)).collect())
    };
    tables.endpoints().map(verdicts).collect()
}

fn of_reference(cluster_state: &ClusterState, probes: &[Probe]) -> Verdicts {
    let local = cluster_state.pods.values().filter(|pod| pod.is_selectable() && pod.node.as_deref() == Some("node-1"));
    let verdicts = |pod: &PodKey| {
        let evaluations = probes.iter().map(|probe| evaluate(cluster_state, &probe.at(pod)));
        evaluations.map(|evaluation| (evaluation.reason, evaluation.recheck)).collect()
    };
    local.map(|pod| (pod.key.clone(), verdicts(&pod.key))).collect()
}

fn assert_same(tables: &Tables, cluster_state: &ClusterState, probes: &[Probe]) -> TestCaseResult {
    let (found, local) = (of_tables(tables, cluster_state, probes), of_reference(cluster_state, probes));
    prop_assert_eq!(found.keys().collect::<Vec<_>>(), local.keys().collect::<Vec<_>>());
    for (pod, verdicts) in &found {
        for (probe, found) in probes.iter().zip(verdicts) {
            let expected = expected(cluster_state, tables, &probe.at(pod));
            prop_assert_eq!(*found, expected, "{} {:?} in {:#?}", pod, probe, cluster_state);
        }
    }
    Ok(())
}

/// Checks that each verdict during the changes is the old or the new one, and that the flows of a pod are re-evaluated
/// if the pod is allowed less.
fn apply_and_check_each_change(
    mut tables: Tables,
    changes: &[Change],
    (old_state, new_state): (&ClusterState, &ClusterState),
    probes: &[Probe],
) -> Result<Tables, TestCaseError> {
    let (before, after) = (of_reference(old_state, probes), of_reference(new_state, probes));
    // A pod changes in two steps: as a local pod and as a remote address. Its hairpin traffic is not checked in
    // between.
    let is_hairpin = |pod: &PodKey, probe: &Probe| {
        let states = [old_state, new_state];
        let [old, new] = states.map(|cluster_state| cluster_state.pods.get(pod));
        let is_own_host_port = |cluster_state: &ClusterState| {
            let frontend = cluster_state.frontend_at(probe.remote, probe.protocol, probe.port);
            frontend.is_some_and(|frontend| cluster_state.owners(&frontend).contains(&Owner::HostPort(pod.clone())))
        };
        let through_service = old != new
            && states.into_iter().any(|cluster_state| {
                is_own_host_port(cluster_state)
                    || is_among_backends(cluster_state, &probe.at(pod), |other| other.key == *pod)
            });
        through_service || [old, new].into_iter().flatten().any(|pod| pod.addresses.contains(&probe.remote))
    };
    let mut reevaluated: BTreeMap<PodKey, bool> = BTreeMap::new();
    for change in changes {
        match change {
            Change::PutEndpoint(pod, _) | Change::DeleteEndpoint(pod) => {
                reevaluated.insert(pod.clone(), true);
            }
            Change::Reevaluate(rule_sets) => {
                for (pod, policy) in tables.endpoints() {
                    let uses = |rule_set: RuleSetId| rule_sets.contains(&rule_set);
                    if uses(policy.ingress.rule_set) || uses(policy.egress.rule_set) {
                        reevaluated.insert(pod.clone(), true);
                    }
                }
            }
            _ => {}
        }
        tables.apply(change).map_err(|error| TestCaseError::fail(error.to_string()))?;
        for (pod, verdicts) in of_tables(&tables, new_state, probes) {
            for (index, found) in verdicts.into_iter().enumerate() {
                let old = before.get(&pod).map(|verdicts| verdicts[index]);
                let new = after.get(&pod).map(|verdicts| verdicts[index]);
                let either =
                    [old, new].into_iter().flatten().any(|(reference, _)| reference.allows() == found.0.allows());
                let probe = &probes[index];
                let may_be_rechecked = || {
                    [old_state, new_state]
                        .into_iter()
                        .any(|cluster_state| is_among_backends(cluster_state, &probe.at(&pod), |_| true))
                };
                let service_verdict = found == (Reason::Service, true) && may_be_rechecked();
                prop_assert!(
                    either || service_verdict || is_hairpin(&pod, probe),
                    "after {change:?}: {pod} {:?} is {found:?}, was {old:?}, will be {new:?}; {changes:#?}",
                    probes[index]
                );
            }
        }
    }
    for (pod, verdicts) in &after {
        let Some(old) = before.get(pod) else { continue };
        let mut pairs = old.iter().zip(verdicts).enumerate();
        let narrowed = pairs.position(|(index, ((old, _), (new, _)))| {
            old.allows() && !new.allows() && !is_hairpin(pod, &probes[index])
        });
        if let Some(index) = narrowed {
            prop_assert!(
                reevaluated.contains_key(pod),
                "{pod} may no longer send or receive {:?}, but its flows are not re-evaluated: {changes:#?}",
                probes[index]
            );
        }
    }
    Ok(tables)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Tables and reference agree after each event. During an event, each verdict is the one before or the one after.
    #[test]
    fn tables_agree_with_the_reference(events in vec(event(), 1..16)) {
        let probes = probes();
        let mut engine = Engine::new(scope(), FirstIds::default());
        let mut tables = Tables::default();
        for event in events {
            let old = engine.cluster_state().clone();
            let single = !matches!(event, Event::Reset(_) | Event::LocalAddresses(_));
            let changes = engine.apply(event);
            if single {
                tables = apply_and_check_each_change(tables, &changes, (&old, engine.cluster_state()), &probes)?;
            } else {
                for change in &changes {
                    tables.apply(change).map_err(|error| TestCaseError::fail(error.to_string()))?;
                }
            }
            prop_assert_eq!(&tables, engine.tables());
            assert_same(&tables, engine.cluster_state(), &probes)?;
        }
    }

    /// All entries are deleted with the last object.
    #[test]
    fn tables_of_an_empty_cluster_are_empty(events in vec(event(), 1..24)) {
        let mut engine = Engine::new(scope(), FirstIds::default());
        engine.apply_all(events);
        engine.apply(Event::LocalAddresses(Vec::new()));
        engine.apply(Event::Reset(Vec::new()));
        prop_assert!(engine.tables().is_empty(), "{:#?}", engine.tables());
    }

    /// The number of entries depends on the state, not on its history.
    #[test]
    fn entries_do_not_depend_on_history(events in vec(event(), 1..24)) {
        let mut engine = Engine::new(scope(), FirstIds::default());
        engine.apply_all(events);
        let mut fresh = Engine::new(scope(), FirstIds::default());
        fresh.apply(Event::LocalAddresses(engine.cluster_state().local_addresses.clone()));
        fresh.apply(Event::Reset(engine.cluster_state().objects().collect()));
        prop_assert_eq!(fresh.tables().entries().count(), engine.tables().entries().count());
    }
}
