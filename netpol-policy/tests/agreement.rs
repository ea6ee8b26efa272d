//! Compares the compiled tables with the reference after each change of random histories.
//!
//! `NETPOL_CASES` sets the number of histories.

use std::collections::BTreeMap;

use netpol_common::{Reason, RuleSetId};
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::model::PodKey;
use netpol_policy::reference::evaluate;
use netpol_policy::tables::{Change, EndpointPolicy, Tables};
use netpol_policy::testing::{Probe, event, expected, is_among_backends, probes};
use netpol_policy::world::{Event, Owner, World};
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

fn of_tables(tables: &Tables, world: &World, probes: &[Probe]) -> Verdicts {
    let verdicts = |(pod, policy): (&PodKey, EndpointPolicy)| {
        let own = world.pods.get(pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
        let judgements = probes.iter().map(|probe| tables.judge(policy, own, &probe.at(pod)));
        (pod.clone(), judgements.map(|judgement| (judgement.reason, judgement.again)).collect())
    };
    tables.endpoints().map(verdicts).collect()
}

fn of_reference(world: &World, probes: &[Probe]) -> Verdicts {
    let local = world.pods.values().filter(|pod| pod.participates() && pod.node.as_deref() == Some("node-1"));
    let verdicts = |pod: &PodKey| {
        let evaluations = probes.iter().map(|probe| evaluate(world, &probe.at(pod)));
        evaluations.map(|evaluation| (evaluation.reason, evaluation.again)).collect()
    };
    local.map(|pod| (pod.key.clone(), verdicts(&pod.key))).collect()
}

fn assert_same(tables: &Tables, world: &World, probes: &[Probe]) -> TestCaseResult {
    let (found, local) = (of_tables(tables, world, probes), of_reference(world, probes));
    prop_assert_eq!(found.keys().collect::<Vec<_>>(), local.keys().collect::<Vec<_>>());
    for (pod, verdicts) in &found {
        for (probe, found) in probes.iter().zip(verdicts) {
            let expected = expected(world, tables, &probe.at(pod));
            prop_assert_eq!(*found, expected, "{} {:?} in {:#?}", pod, probe, world);
        }
    }
    Ok(())
}

/// Checks that each verdict during the changes is the old or the new one, and that pods that are allowed less are
/// re-evaluated.
fn apply_and_check_each_change(
    mut tables: Tables,
    changes: &[Change],
    (old_world, new_world): (&World, &World),
    probes: &[Probe],
) -> Result<Tables, TestCaseError> {
    let (before, after) = (of_reference(old_world, probes), of_reference(new_world, probes));
    // A pod changes as a pod and as an address, one after the other. Its hairpin traffic is not checked meanwhile.
    let is_hairpin = |pod: &PodKey, probe: &Probe| {
        let worlds = [old_world, new_world];
        let [old, new] = worlds.map(|world| world.pods.get(pod));
        let is_own_host_port = |world: &World| {
            let frontend = world.frontend_at(probe.remote, probe.protocol, probe.port);
            frontend.is_some_and(|frontend| world.owners(&frontend).contains(&Owner::HostPort(pod.clone())))
        };
        let through_service = old != new
            && worlds.into_iter().any(|world| {
                is_own_host_port(world) || is_among_backends(world, &probe.at(pod), |other| other.key == *pod)
            });
        through_service || [old, new].into_iter().flatten().any(|pod| pod.addresses.contains(&probe.remote))
    };
    let mut rejudged: BTreeMap<PodKey, bool> = BTreeMap::new();
    for change in changes {
        match change {
            Change::PutEndpoint(pod, _) | Change::DeleteEndpoint(pod) => {
                rejudged.insert(pod.clone(), true);
            }
            Change::Rejudge(rule_sets) => {
                for (pod, policy) in tables.endpoints() {
                    let uses = |rule_set: RuleSetId| rule_sets.contains(&rule_set);
                    if uses(policy.ingress.rule_set) || uses(policy.egress.rule_set) {
                        rejudged.insert(pod.clone(), true);
                    }
                }
            }
            _ => {}
        }
        tables.apply(change).map_err(|error| TestCaseError::fail(error.to_string()))?;
        for (pod, verdicts) in of_tables(&tables, new_world, probes) {
            for (index, found) in verdicts.into_iter().enumerate() {
                let old = before.get(&pod).map(|verdicts| verdicts[index]);
                let new = after.get(&pod).map(|verdicts| verdicts[index]);
                let either =
                    [old, new].into_iter().flatten().any(|(reference, _)| reference.allows() == found.0.allows());
                let probe = &probes[index];
                let shared = || {
                    [old_world, new_world].into_iter().any(|world| is_among_backends(world, &probe.at(&pod), |_| true))
                };
                let service_verdict = found == (Reason::Service, true) && shared();
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
                rejudged.contains_key(pod),
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
            let old = engine.world().clone();
            let single = !matches!(event, Event::Reset(_) | Event::OwnAddresses(_));
            let changes = engine.apply(event);
            if single {
                tables = apply_and_check_each_change(tables, &changes, (&old, engine.world()), &probes)?;
            } else {
                for change in &changes {
                    tables.apply(change).map_err(|error| TestCaseError::fail(error.to_string()))?;
                }
            }
            prop_assert_eq!(&tables, engine.tables());
            assert_same(&tables, engine.world(), &probes)?;
        }
    }

    /// All entries are deleted with the last object.
    #[test]
    fn tables_of_an_empty_cluster_are_empty(events in vec(event(), 1..24)) {
        let mut engine = Engine::new(scope(), FirstIds::default());
        engine.apply_all(events);
        engine.apply(Event::OwnAddresses(Vec::new()));
        engine.apply(Event::Reset(Vec::new()));
        prop_assert!(engine.tables().is_empty(), "{:#?}", engine.tables());
    }

    /// The number of entries depends on the state, not on its history.
    #[test]
    fn entries_do_not_depend_on_history(events in vec(event(), 1..24)) {
        let mut engine = Engine::new(scope(), FirstIds::default());
        engine.apply_all(events);
        let mut fresh = Engine::new(scope(), FirstIds::default());
        fresh.apply(Event::OwnAddresses(engine.world().own_addresses.clone()));
        fresh.apply(Event::Reset(engine.world().objects().collect()));
        prop_assert_eq!(fresh.tables().entries().count(), engine.tables().entries().count());
    }
}
