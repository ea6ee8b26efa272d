//! Chooses the labels that select the pods of a workload: as few labels as possible, which select no other pods of the
//! namespace.

use std::sync::Arc;

use super::SelectorLabels;
use crate::model::Labels;

/// Labels that are preferred in a selector, best first.
const PREFERRED: [&str; 10] = [
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app",
    "k8s-app",
    "component",
    "tier",
    "role",
    "name",
    "run",
];
/// Labels that are never chosen, because their values differ between the pods of a workload or between its versions.
const VOLATILE: [&str; 13] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "controller-uid",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
    "chart",
    "heritage",
    "job-name",
    "version-hash",
];
/// Prefixes of labels that are never chosen.
const VOLATILE_PREFIXES: [&str; 2] = ["batch.kubernetes.io/", "topology.kubernetes.io/"];
/// The label of a Job's pods. As an exception, it is chosen if the pods have no other label that can be chosen.
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

fn is_volatile(name: &str) -> bool {
    VOLATILE.contains(&name) || VOLATILE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn rank(name: &str) -> usize {
    PREFERRED.iter().position(|preferred| *preferred == name).unwrap_or(PREFERRED.len())
}

/// Returns the labels of a selector for a workload. `shared`: the labels that all pods of the workload have. `others`:
/// the labels of the other pods of the namespace, one item for each pod. If one of these pods has all labels that can
/// be chosen, the selector selects the pod, too.
pub(super) fn choose(shared: &Labels, others: &[&Labels]) -> SelectorLabels {
    let mut candidates: Vec<(Arc<str>, Arc<str>)> = shared
        .iter()
        .filter(|(name, _)| !is_volatile(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    candidates.sort_by_key(|(name, _)| rank(name));
    if candidates.is_empty() {
        candidates.extend(shared.get(JOB_NAME).map(|value| (Arc::from(JOB_NAME), value.clone())));
    }
    let mut chosen = SelectorLabels::new();
    // The other pods that the chosen labels still select.
    let mut rest: Vec<&Labels> = others.to_vec();
    while !candidates.is_empty() && !rest.is_empty() {
        // The number of other pods that a label excludes.
        let excluded = |(name, value): &(Arc<str>, Arc<str>)| -> usize {
            rest.iter().filter(|labels| labels.get(name) != Some(value)).count()
        };
        // If several labels exclude the same number of pods, the first of them is chosen: `max_by_key` returns the last
        // one, so the order is reversed.
        let counts = candidates.iter().map(excluded).enumerate();
        let Some((best, count)) = counts.rev().max_by_key(|(_, count)| *count) else { break };
        if count == 0 {
            break;
        }
        let (name, value) = candidates.remove(best);
        rest.retain(|labels| labels.get(&name) == Some(&value));
        chosen.push((name, value));
    }
    // If no label excludes another pod, or there is no other pod, one label is still chosen: an empty selector would
    // also select pods that are created later.
    if chosen.is_empty() {
        chosen.extend(candidates.into_iter().next());
    }
    chosen.sort();
    chosen
}

/// Returns whether a selector with these labels selects a pod.
pub(super) fn selects(selector: &SelectorLabels, labels: &Labels) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    fn chosen(shared: &str, others: &[&str]) -> String {
        let others: Vec<Labels> = others.iter().map(|text| labels(text)).collect();
        let chosen = choose(&labels(shared), &others.iter().collect::<Vec<_>>());
        chosen.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn as_few_labels_as_possible_are_chosen_and_well_known_ones_first() {
        for (shared, others, expected) in [
            ("app=web,team=x", &["app=db,team=x"][..], "app=web"),
            ("app=web,app.kubernetes.io/name=web", &["app=db"], "app.kubernetes.io/name=web"),
            ("app=shop,tier=web", &["app=shop,tier=db", "app=blog,tier=db"], "tier=web"),
            ("app=shop,tier=web", &["app=shop,tier=db", "app=blog,tier=web"], "app=shop,tier=web"),
            ("app=web,pod-template-hash=5d", &["app=web,pod-template-hash=77"], "app=web"),
            ("app=web,zone=a", &[], "app=web"),
            ("pod-template-hash=5d", &[], ""),
            (
                "batch.kubernetes.io/job-name=migrate,job-name=migrate",
                &["app=web"],
                "batch.kubernetes.io/job-name=migrate",
            ),
            ("app=web", &["app=web,canary=true"], "app=web"),
        ] {
            assert_eq!(chosen(shared, others), expected, "{shared} {others:?}");
        }
    }
}
