//! Compares the compiled tables with the reference (a direct implementation of the API documentation) after each change
//! of random sequences of events.
//!
//! The environment variable `NETPOL_CASES` sets the number of sequences.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::{Evaluation, Reason, RuleSetId};
use netpol_policy::cluster_state::{ClusterState, Event, FrontendOwner};
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::model::{Object, ObjectKey, PodKey};
use netpol_policy::reference::{self, Packet, evaluate, evaluate_shadow};
use netpol_policy::tables::{Change, EndpointPolicy, Tables};
use netpol_policy::testing::{Probe, event, expected, expected_shadow, has_local_backend, probes};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

fn cases() -> u32 {
    std::env::var("NETPOL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

fn scope() -> NodeScope {
    NodeScope::Node("node-1".into())
}

/// A verdict, and whether the packet is evaluated again post-DNAT.
type Verdict = (Reason, bool);

/// For each pod, two verdicts on each probe (a packet that is evaluated at each pod). The first is the verdict of the
/// policies that are enforced. The second is the verdict if policies in shadow mode were enforced, too. It is `None` if
/// no policy in shadow mode isolates the pod.
type Verdicts = BTreeMap<PodKey, Vec<(Verdict, Option<Verdict>)>>;

fn verdicts_of_tables(tables: &Tables, cluster_state: &ClusterState, probes: &[Probe]) -> Verdicts {
    let verdicts = |(pod, policy): (&PodKey, EndpointPolicy)| {
        let addresses = cluster_state.pods.get(pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
        let verdict = |evaluation: Evaluation| (evaluation.reason, evaluation.recheck);
        let enforced_and_shadow = |packet: &Packet| {
            let shadow = tables.evaluate_shadow(policy, addresses, packet);
            (verdict(tables.evaluate(policy, addresses, packet)), shadow.map(verdict))
        };
        (pod.clone(), probes.iter().map(|probe| enforced_and_shadow(&probe.at(pod))).collect())
    };
    tables.endpoints().map(verdicts).collect()
}

fn verdicts_of_reference(cluster_state: &ClusterState, probes: &[Probe]) -> Verdicts {
    let local = cluster_state.pods.values().filter(|pod| pod.is_selectable() && pod.node.as_deref() == Some("node-1"));
    let verdicts = |pod: &PodKey| {
        let verdict = |evaluation: reference::Evaluation| (evaluation.reason, evaluation.recheck);
        let enforced_and_shadow = |packet: &Packet| {
            (verdict(evaluate(cluster_state, packet)), evaluate_shadow(cluster_state, packet).map(verdict))
        };
        probes.iter().map(|probe| enforced_and_shadow(&probe.at(pod))).collect()
    };
    local.map(|pod| (pod.key.clone(), verdicts(&pod.key))).collect()
}

/// Checks that the tables give the expected verdict on each probe at each pod of this node.
fn assert_same(tables: &Tables, cluster_state: &ClusterState, probes: &[Probe]) -> TestCaseResult {
    let (found, reference) =
        (verdicts_of_tables(tables, cluster_state, probes), verdicts_of_reference(cluster_state, probes));
    // Both have verdicts for the same pods.
    prop_assert_eq!(found.keys().collect::<Vec<_>>(), reference.keys().collect::<Vec<_>>());
    for (pod, verdicts) in &found {
        for (probe, found) in probes.iter().zip(verdicts) {
            let packet = probe.at(pod);
            let shadow = expected_shadow(cluster_state, tables, &packet);
            let expected = (expected(cluster_state, tables, &packet), shadow);
            prop_assert_eq!(*found, expected, "{} {:?} in {:#?}", pod, probe, cluster_state);
        }
    }
    Ok(())
}

/// Applies changes one by one. Checks that each verdict after each change is the old or the new one, and that the flows
/// of a pod are re-evaluated if the pod is allowed less.
fn apply_and_check_each_change(
    mut tables: Tables,
    changes: &[Change],
    (old_state, new_state): (&ClusterState, &ClusterState),
    probes: &[Probe],
) -> Result<Tables, TestCaseError> {
    let (before, after) = (verdicts_of_reference(old_state, probes), verdicts_of_reference(new_state, probes));
    // A change of a pod takes effect in two steps: for the pod as a local pod, and for its address as a remote address.
    // Between the steps, a verdict on hairpin traffic of the pod can be neither the old nor the new one. So these
    // verdicts are not checked.
    let may_be_hairpin = |pod: &PodKey, probe: &Probe| {
        let states = [old_state, new_state];
        let [old, new] = states.map(|cluster_state| cluster_state.pods.get(pod));
        let is_own_host_port_at = |cluster_state: &ClusterState, address: IpAddr, port: u16| {
            let frontend = cluster_state.frontend_at(address, probe.protocol, port);
            frontend
                .is_some_and(|frontend| cluster_state.owners(&frontend).contains(&FrontendOwner::HostPort(pod.clone())))
        };
        // A backend of a Service can also have the address and port of the pod's hostPort.
        let leads_to_own_host_port = |cluster_state: &ClusterState| {
            let frontend = cluster_state.frontend_at(probe.remote, probe.protocol, probe.port);
            let mut backends = frontend.iter().flat_map(|frontend| cluster_state.backends(frontend));
            is_own_host_port_at(cluster_state, probe.remote, probe.port)
                || backends.any(|backend| is_own_host_port_at(cluster_state, backend.address, backend.port))
        };
        let through_service = old != new
            && states.into_iter().any(|cluster_state| {
                leads_to_own_host_port(cluster_state)
                    || has_local_backend(cluster_state, &probe.at(pod), |other| other.key == *pod)
            });
        through_service || [old, new].into_iter().flatten().any(|pod| pod.addresses.contains(&probe.remote))
    };
    let mut reevaluated: BTreeSet<PodKey> = BTreeSet::new();
    for change in changes {
        match change {
            Change::PutEndpoint(pod, _) | Change::DeleteEndpoint(pod) => {
                reevaluated.insert(pod.clone());
            }
            Change::Reevaluate(rule_sets) => {
                for (pod, policy) in tables.endpoints() {
                    let uses = |rule_set: RuleSetId| rule_sets.contains(&rule_set);
                    let policies = [policy.ingress, policy.egress, policy.shadow_ingress, policy.shadow_egress];
                    if policies.iter().any(|policy| uses(policy.rule_set)) {
                        reevaluated.insert(pod.clone());
                    }
                }
            }
            _ => {}
        }
        tables.apply(change).map_err(|error| TestCaseError::fail(error.to_string()))?;
        for (pod, verdicts) in verdicts_of_tables(&tables, new_state, probes) {
            for (index, found) in verdicts.into_iter().enumerate() {
                let old = before.get(&pod).map(|verdicts| verdicts[index]);
                let new = after.get(&pod).map(|verdicts| verdicts[index]);
                let shadow_allows = |verdict: Option<Verdict>| verdict.is_none_or(|(reason, _)| reason.allows());
                let references = [old, new].into_iter().flatten();
                let is_old_or_new = references.clone().any(|((reason, _), _)| reason.allows() == found.0.0.allows())
                    && references.clone().any(|(_, shadow)| shadow_allows(shadow) == shadow_allows(found.1));
                let probe = &probes[index];
                // During a change, packets to a Service with a backend on the local node may be evaluated post-DNAT.
                let has_local_backend = || {
                    [old_state, new_state]
                        .into_iter()
                        .any(|cluster_state| has_local_backend(cluster_state, &probe.at(&pod), |_| true))
                };
                let is_rechecked = [Some(found.0), found.1].contains(&Some((Reason::Service, true)));
                let may_be_rechecked = is_rechecked && has_local_backend();
                prop_assert!(
                    is_old_or_new || may_be_rechecked || may_be_hairpin(&pod, probe),
                    "after {change:?}: {pod} {:?} is {found:?}, was {old:?}, will be {new:?}; {changes:#?}",
                    probes[index]
                );
            }
        }
    }
    // The new verdicts are those of the tables, not of the reference: a flow that is evaluated again gets the verdict
    // of the tables. The documentation of `expected` states in which case the tables allow more than the reference.
    let now = verdicts_of_tables(&tables, new_state, probes);
    for (pod, verdicts) in &now {
        let Some(old) = before.get(pod) else { continue };
        let mut pairs = old.iter().zip(verdicts).enumerate();
        let narrowed = pairs.position(|(index, ((old, old_shadow), (new, new_shadow)))| {
            let shadow_allows = |verdict: &Option<Verdict>| verdict.is_none_or(|(reason, _)| reason.allows());
            let is_narrowed =
                old.0.allows() && !new.0.allows() || shadow_allows(old_shadow) && !shadow_allows(new_shadow);
            is_narrowed && !may_be_hairpin(pod, &probes[index])
        });
        if let Some(index) = narrowed {
            prop_assert!(
                reevaluated.contains(pod),
                "{pod} may no longer send or receive {:?}, but its flows are not re-evaluated: {changes:#?}",
                probes[index]
            );
        }
    }
    Ok(tables)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Tables and reference agree after each event. While the changes of an event are applied, each verdict is the one
    /// before or after the event.
    #[test]
    fn tables_agree_with_the_reference(events in vec(event(), 1..16)) {
        let probes = probes();
        let mut engine = Engine::new(scope(), FirstIds::default());
        let mut tables = Tables::default();
        for event in events {
            let old = engine.cluster_state().clone();
            let is_single_change = match &event {
                Event::Reset(_) | Event::LocalAddresses(_) => false,
                // An event that changes both the labels of a namespace and its modes (shadow mode, suspension) counts
                // as two changes. For such an event, `in_safe_order` returns `None`.
                Event::Apply(Object::Namespace(_)) | Event::Delete(ObjectKey::Namespace(_)) => {
                    engine.in_safe_order(vec![event.clone()]).is_some()
                }
                Event::Apply(_) | Event::Delete(_) | Event::Clock(_) => true,
            };
            let changes = engine.apply(event);
            if is_single_change {
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
        fresh.apply(Event::Clock(engine.cluster_state().clock));
        fresh.apply(Event::LocalAddresses(engine.cluster_state().local_addresses.clone()));
        fresh.apply(Event::Reset(engine.cluster_state().objects().collect()));
        prop_assert_eq!(fresh.tables().entries().count(), engine.tables().entries().count());
    }
}
