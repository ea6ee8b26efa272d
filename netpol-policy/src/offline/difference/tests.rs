//! Tests of [`Difference`], which has the connections that change between two clusters. In the first test, the clusters
//! are random. The test compares the changes with the verdicts of the reference evaluator on both clusters.

use std::collections::BTreeMap;

use netpol_common::protocol;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{ChangeCause, ChangeReason, Difference, Members, Presence, Row};
use crate::manifest::parse_offline;
use crate::model::{Pod, PodKey, Policy, Protocol};
use crate::offline::{OfflineCluster, UnitKey, is_placeholder};
use crate::reference::{Connection, End, connections};
use crate::testing::{pod, policy};

/// The ports in random policies, and the ports next to these.
const PORTS: [u16; 12] = [0, 52, 53, 54, 78, 79, 80, 82, 8080, 8081, 65534, 65535];

fn cluster(policies: &[Policy], pods: &[Pod]) -> OfflineCluster {
    crate::offline::reachability::tests::cluster(policies, pods)
}

/// Returns the row of each pair (source, destination). A source or destination is named by its pod or workload, or by
/// the text of its set of addresses.
fn by_pair(difference: &Difference) -> BTreeMap<(String, String), &Row> {
    let names = |index: &usize| match &difference.ends[*index].members {
        Members::Units(_, units) => units.iter().map(ToString::to_string).collect::<Vec<_>>(),
        Members::Addresses(addresses) => vec![addresses.to_string()],
    };
    let mut found = BTreeMap::new();
    for row in &difference.rows {
        for from in row.from.iter().flat_map(names) {
            for to in row.to.iter().flat_map(names) {
                found.insert((from.clone(), to), row);
            }
        }
    }
    found
}

/// Returns whether the reference evaluator allows a connection in each address family that both ends have.
fn allows(cluster: &OfflineCluster, from: &End, to: &End, protocol: u8, port: u16) -> bool {
    connections(cluster.state(), from, to, protocol, port).is_ok_and(|found| found.iter().all(Connection::allowed))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn the_changes_between_two_clusters_are_the_differences_of_the_reference_verdicts(
        policies in vec(policy(), 0..4),
        added in vec(policy(), 0..3),
        pods in vec(pod(), 2..6),
        relabeled in pod(),
    ) {
        // The new cluster does not have the first policy, but has the policies `added`. In the new cluster, the first
        // pod has other labels and addresses.
        let old = cluster(&policies, &pods);
        let policies: Vec<_> = policies.iter().skip(1).chain(&added).cloned().collect();
        let relabeled = Pod { key: pods[0].key.clone(), ..relabeled };
        let new = cluster(&policies, &pods.iter().cloned().chain([relabeled]).collect::<Vec<_>>());
        let difference = Difference::new(&old, &new);
        let changes = by_pair(&difference);
        for row in &difference.rows {
            let has_outside = |ends: &[usize]| ends.iter().any(|end| difference.ends[*end].is_outside());
            prop_assert!(!has_outside(&row.from) || !has_outside(&row.to), "addresses to addresses: {:?}", row);
        }
        // The reference evaluator needs pods with known addresses.
        let is_comparable = |key: &PodKey, cluster: &OfflineCluster| cluster.state().pods.get(key).is_some_and(|pod| {
            pod.is_selectable() && !pod.addresses.iter().any(|own| is_placeholder(*own))
        });
        let is_comparable_in_both = |key: &&PodKey| is_comparable(key, &old) && is_comparable(key, &new);
        let keys: Vec<&PodKey> = old.state().pods.keys().filter(is_comparable_in_both).collect();
        // For each set of addresses: its first address that is neither the address of a pod nor a placeholder.
        // Placeholders stand for unknown addresses of pods.
        let outside: Vec<_> = difference.ends.iter().filter_map(|end| match &end.members {
            Members::Addresses(addresses) => {
                let pods = old.state().pods.values().chain(new.state().pods.values());
                let pods = crate::offline::AddressSet::of_addresses(pods.flat_map(|pod| pod.addresses.iter().copied()));
                let placeholders = crate::offline::AddressSet::of(crate::offline::addresses::placeholder_ranges());
                let first = addresses.difference(&pods).difference(&placeholders).first()?;
                Some((addresses.to_string(), End::Address(first)))
            }
            Members::Units(..) => None,
        }).collect();
        let pods: Vec<(String, End)> = keys.iter().map(|key| (key.to_string(), End::Pod((*key).clone()))).collect();
        let pairs = pods.iter().flat_map(|pod| pods.iter().chain(&outside).flat_map(move |other| [(pod, other), (other, pod)]));
        for (from, to) in pairs.filter(|(from, to)| from.0 != to.0) {
            let change = changes.get(&(from.0.clone(), to.0.clone()));
            let cases = [protocol::TCP, protocol::UDP, protocol::SCTP].into_iter();
            for (protocol, port) in cases.flat_map(|protocol| PORTS.map(|port| (protocol, port))) {
                let [before, now] = [&old, &new].map(|cluster| allows(cluster, &from.1, &to.1, protocol, port));
                let with_ports = Protocol::from_number(protocol).expect("a protocol with ports");
                let found = change.map(|row| &row.change);
                let has = |set: fn(&super::PortChange) -> &crate::offline::PortSet| found.is_some_and(|it| set(it).contains(with_ports, port));
                let actual = (has(|it| &it.allowed), has(|it| &it.denied), has(|it| &it.unknown));
                let expected = (!before && now, before && !now, false);
                prop_assert_eq!(actual, expected, "{} to {} at {} {}", from.0, to.0, protocol, port);
            }
            prop_assert!(change.is_none_or(|row| !row.causes.is_empty()), "{} to {}", from.0, to.0);
        }
    }
}

const WORKLOADS: &str = "\
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {template: {metadata: {labels: {app: web}}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: api, namespace: shop}, spec: {template: {metadata: {labels: {app: api}}}}}
";

fn policy_text(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {spec}}}\n"
    )
}

fn difference(old: &str, new: &str) -> Difference {
    let [old, new] =
        [old, new].map(|text| OfflineCluster::new(&parse_offline(&format!("{WORKLOADS}{text}"), "f"), &[]));
    Difference::new(&old, &new)
}

/// Describes each row as `web -> api: +TCP 80 -none ?none by ingress api[0]`: sources, destinations, the ports that are
/// now allowed (`+`), denied (`-`) or unknown (`?`), and the causes. `ingress api[0]`: the first ingress rule of
/// policy `api` allows the ports now, or allowed them before. `ingress isolation 1`: because of one policy, pods are
/// now isolated for ingress, or no longer isolated.
fn summary(difference: &Difference) -> Vec<String> {
    let name = |index: usize| match &difference.ends[index].members {
        Members::Units(_, units) => units.iter().map(UnitKey::short_name).collect::<Vec<_>>().join(","),
        Members::Addresses(addresses) => addresses.to_string(),
    };
    let names = |indices: &[usize]| indices.iter().map(|index| name(*index)).collect::<Vec<_>>().join(" ");
    let row = |row: &Row| {
        let causes: Vec<String> = row
            .causes
            .iter()
            .map(|ChangeCause { side, reason }| {
                let side = side.map_or("", netpol_common::Direction::name);
                match reason {
                    ChangeReason::Isolated(policies) | ChangeReason::NotIsolated(policies) => {
                        format!("{side} isolation {}", policies.len())
                    }
                    ChangeReason::Added(rules) | ChangeReason::Removed(rules) => {
                        let rules: Vec<_> =
                            rules.iter().map(|rule| format!("{}[{}]", rule.policy.name, rule.index)).collect();
                        format!("{side} {}", rules.join(","))
                    }
                    other => format!("{side} {other:?}"),
                }
            })
            .collect();
        let super::PortChange { allowed, denied, unknown } = &row.change;
        format!("{} -> {}: +{allowed} -{denied} ?{unknown} by {}", names(&row.from), names(&row.to), causes.join("; "))
    };
    difference.rows.iter().map(row).collect()
}

#[test]
fn each_row_names_the_policies_and_rules_that_cause_the_change() {
    let deny_all = policy_text("deny", "{podSelector: {}, policyTypes: [Ingress]}");
    let allow = |port: u16| {
        let ports = format!("[{{port: {port}}}]");
        policy_text("api", &format!("{{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{ports: {ports}}}]}}"))
    };
    let all = "deployment/api deployment/web 0.0.0.0/0";
    let found = |old: &str, new: &str| summary(&difference(old, new));
    assert_eq!(
        found("", &deny_all),
        [
            "deployment/api,deployment/web 0.0.0.0/0 -> deployment/api,deployment/web: +none -all ?none by ingress isolation 1"
        ]
    );
    let with_80 = format!("{deny_all}{}", allow(80));
    let with_81 = format!("{deny_all}{}", allow(81));
    assert_eq!(found(&deny_all, &with_80), [format!("{all} -> deployment/api: +TCP 80 -none ?none by ingress api[0]")]);
    assert_eq!(
        found(&with_80, &with_81),
        [format!("{all} -> deployment/api: +TCP 81 -TCP 80 ?none by ingress api[0]; ingress api[0]")]
    );
    assert_eq!(found(&with_80, &with_80), [""; 0]);
}

#[test]
fn a_change_of_a_policy_that_is_not_evaluated_is_reported_as_unknown() {
    let cilium = |port: u16| {
        format!(
            "---\n{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: c, namespace: shop}}, spec: {{endpointSelector: \
             {{matchLabels: {{app: api}}}}, ingress: [{{toPorts: [{{ports: [{{port: '{port}'}}]}}]}}]}}}}\n"
        )
    };
    let cause = "ingress Unevaluated([\"CiliumNetworkPolicy shop/c\"])";
    let all = "deployment/api deployment/web 0.0.0.0/0";
    let row = [format!("{all} -> deployment/api: +none -none ?all by {cause}")];
    assert_eq!(summary(&difference("", &cilium(80))), row);
    assert_eq!(summary(&difference(&cilium(80), &cilium(81))), row);
    assert_eq!(summary(&difference(&cilium(80), &cilium(80))), [""; 0]);
}

#[test]
fn all_ports_of_a_new_pod_are_newly_allowed() {
    let batch =
        "---\n{apiVersion: v1, kind: Pod, metadata: {name: batch, namespace: shop}, status: {podIP: 10.0.0.9}}\n";
    let difference = difference("", batch);
    let is_new = |end: &super::DifferenceEnd| end.presence == Presence::Added;
    assert_eq!(difference.ends.iter().filter(|end| is_new(end)).count(), 1);
    assert!(difference.rows.iter().all(|row| {
        row.change.denied.is_empty() && row.from.iter().chain(&row.to).any(|index| is_new(&difference.ends[*index]))
    }));
    // One row has the new pod as the source, and one has it as the destination.
    assert_eq!(difference.rows.len(), 2, "{:?}", summary(&difference));
}
