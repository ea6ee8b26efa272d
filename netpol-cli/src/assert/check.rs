//! Evaluates expectations. The ends of an expectation (its sources and destinations) stand for pods and addresses,
//! which are grouped by [`EndId`]: between two groups, the same ports are allowed for all their pods or addresses.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use netpol_common::Direction;
use netpol_policy::model::{PodKey, ServiceKey};
use netpol_policy::offline::{AddressSet, EndId, OfflineCluster, PortIds, PortSet, Reachability, RuleCause};
use netpol_policy::reference::End;
use serde::Serialize;

use super::expectations::{Check, Connections, Ends, Expectation, ExpectedEnd, Ports};
use super::services;
use crate::diff::{listed, rules_text};
use crate::ends::{self, EndArgument};

/// The index of the input in [`Reachability`], which can have several clusters. Here, the input is the only one.
const INPUT: usize = 0;

/// Whether an expectation is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    Passed,
    /// Depends on a policy that netpol does not evaluate, or on an unknown address.
    Unknown,
    Failed,
}

/// A connection or a pod that does not meet an expectation.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Counterexample {
    /// `Deployment shop/web -> pod shop/db-0`; for `isolated`, a pod.
    pub(super) what: String,
    /// The lowest port that does not meet the expectation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<String>,
    /// All ports that do not meet the expectation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ports: Option<String>,
    /// `allowed`, `denied`, `unknown` or `not isolated`.
    pub(super) verdict: &'static str,
    /// The rules and policies that decide: one sentence for the source, one for the destination.
    pub(super) because: Vec<String>,
}

/// The result of an expectation.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Checked {
    pub(super) name: String,
    pub(super) line: u64,
    pub(super) result: Outcome,
    /// One of the connections or pods that do not meet the expectation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) counterexample: Option<Counterexample>,
    /// The number of cases that do not meet the expectation. A case is a pair of a source and a destination; pods or
    /// addresses with the same allowed ports count as one. For `isolated`, a case is a pair of a pod and a direction.
    pub(super) violations: usize,
}

/// Pods or addresses of one [`EndId`].
struct EndMembers {
    end: EndId,
    pods: Vec<PodKey>,
    addresses: AddressSet,
}

/// The pods and addresses that the ends of an expectation stand for.
#[derive(Default)]
pub(super) struct Selected {
    pub(super) pods: BTreeSet<PodKey>,
    pub(super) addresses: AddressSet,
}

/// Pods or addresses that are destinations of an expectation, and the ports to check at them.
pub(super) struct Destination {
    pub(super) selected: Selected,
    pub(super) ports: PortSet,
    /// The Service, if the expectation names a Service: the destinations are its backends.
    pub(super) service: Option<ServiceKey>,
}

/// The ports at which a source and a destination do not meet an expectation.
struct Violation {
    outcome: Outcome,
    ports: PortSet,
    /// `true`: the ports should be denied, but are allowed. `false`: the ports should be allowed, but are denied. With
    /// outcome `Unknown`, they are possibly allowed (`true`) or possibly denied (`false`).
    is_allowed: bool,
}

/// Checks one expectation.
pub(super) fn check(reachability: &mut Reachability<'_>, expectation: &Expectation) -> Result<Checked> {
    let result = match &expectation.check {
        Check::Isolated(ends, directions) => check_isolated(reachability, ends, directions, &expectation.namespace)?,
        Check::Allow(connections) | Check::Deny(connections) | Check::Only(connections) => {
            check_connections(reachability, &expectation.check, connections, &expectation.namespace)?
        }
    };
    let (outcome, counterexample, violations) = result;
    let (name, line) = (expectation.title.clone(), expectation.line);
    Ok(Checked { name, line, result: outcome, counterexample, violations })
}

/// The outcome, a counterexample, and the number of violations.
type CheckResult = (Outcome, Option<Counterexample>, usize);

/// Checks an expectation about connections. `namespace`: the namespace of ends that are written without a namespace.
fn check_connections(
    reachability: &mut Reachability<'_>,
    check: &Check,
    Connections { from, to, ports }: &Connections,
    namespace: &str,
) -> Result<CheckResult> {
    let cluster = reachability.cluster(INPUT);
    let sources = select(cluster, from, namespace)?;
    // `only`: no other source may connect.
    let sources = if matches!(check, Check::Only(_)) { complement(cluster, &sources) } else { sources };
    let destinations = destinations(cluster, to, ports, namespace)?;
    let from = members_by_end(reachability, &sources);
    let (mut worst, mut violations, mut pairs) = (None::<(Violation, String, Vec<String>)>, 0, 0);
    let mut has_destination = false;
    for Destination { selected, ports, service } in &destinations {
        let to = members_by_end(reachability, selected);
        has_destination |= !to.is_empty();
        for (source, destination) in to.iter().flat_map(|to| from.iter().map(move |from| (from, to))) {
            let Some(example) = example(source, destination) else { continue };
            let Some(ids) = reachability.between(source.end, destination.end) else { continue };
            pairs += 1;
            let Some(violation) = violation(reachability, check, ids, ports) else { continue };
            violations += 1;
            if worst.as_ref().is_none_or(|(worst, ..)| worst.outcome < violation.outcome) {
                let because = because_sentences(reachability, (source, destination), &example, &violation);
                let service_suffix = service.as_ref().map(|key| format!(" of Service {key}")).unwrap_or_default();
                let what = format!("{}{service_suffix}", example.each_ref().map(ExampleEnd::text).join(" -> "));
                worst = Some((violation, what, because));
            }
        }
    }
    // An expectation `only` is met if there are no other sources. But it is an error if there is no destination.
    if pairs == 0 && (!matches!(check, Check::Only(_)) || !has_destination) {
        bail!("no connection between these ends is possible; check their address families");
    }
    let Some((violation, what, because)) = worst else { return Ok((Outcome::Passed, None, 0)) };
    let port = violation.ports.first().map(|(protocol, port)| format!("{} {port}", protocol.name()));
    let verdict = match (violation.outcome, violation.is_allowed) {
        (Outcome::Unknown, _) => "unknown",
        (_, true) => "allowed",
        (_, false) => "denied",
    };
    let ports = Some(violation.ports.to_string());
    Ok((violation.outcome, Some(Counterexample { what, port, ports, verdict, because }), violations))
}

/// Returns the ports at which a source and a destination do not meet an expectation. `ids`: the IDs of the port sets
/// between the source and the destination. `ports`: the ports of the expectation.
fn violation(reachability: &Reachability<'_>, check: &Check, ids: PortIds, ports: &PortSet) -> Option<Violation> {
    // `possible` has the allowed ports, and those with an unknown verdict.
    let [allowed, possible] = reachability.ports(ids);
    let (is_allowed, failed, unknown) = match check {
        Check::Allow(_) => (false, ports.difference(possible), ports.difference(allowed)),
        _ => (true, ports.intersection(allowed), ports.intersection(possible)),
    };
    if !failed.is_empty() {
        return Some(Violation { outcome: Outcome::Failed, ports: failed, is_allowed });
    }
    (!unknown.is_empty()).then_some(Violation { outcome: Outcome::Unknown, ports: unknown, is_allowed })
}

/// One end of a counterexample: a pod or an address.
enum ExampleEnd {
    Pod(PodKey),
    Address(String),
}

impl ExampleEnd {
    fn text(&self) -> String {
        match self {
            Self::Pod(key) => key.title(),
            Self::Address(text) => text.clone(),
        }
    }
}

/// Returns a source and a destination: a pod or an address of each end. Returns `None` if both could only be the same
/// pod. Exception: a pod that stands for all pods of a workload can be both source and destination, because it stands
/// for several pods.
fn example(from: &EndMembers, to: &EndMembers) -> Option<[ExampleEnd; 2]> {
    let first_address =
        |members: &EndMembers| members.addresses.first().map(|address| ExampleEnd::Address(address.to_string()));
    let (Some(source), Some(destination)) = (from.pods.first(), to.pods.first()) else {
        let end = |members: &EndMembers| {
            members.pods.first().cloned().map(ExampleEnd::Pod).or_else(|| first_address(members))
        };
        return Some([end(from)?, end(to)?]);
    };
    let pair =
        |source: &PodKey, destination: &PodKey| Some([source, destination].map(|pod| ExampleEnd::Pod(pod.clone())));
    if source != destination || source.workload().is_some() {
        return pair(source, destination);
    }
    match (from.pods.get(1), to.pods.get(1)) {
        (Some(source), _) => pair(source, destination),
        (None, Some(destination)) => pair(source, destination),
        (None, None) => None,
    }
}

/// Returns sentences about the rules that allow the ports of a violation, or about the policies that deny them.
fn because_sentences(
    reachability: &mut Reachability<'_>,
    (from, to): (&EndMembers, &EndMembers),
    example: &[ExampleEnd; 2],
    violation: &Violation,
) -> Vec<String> {
    let sides = [(&example[0], to.end, Direction::Egress), (&example[1], from.end, Direction::Ingress)];
    let mut sentences = Vec::new();
    for (local, remote, direction) in sides {
        let ExampleEnd::Pod(pod) = local else { continue };
        let ids = reachability.side_between(from.end, to.end, direction);
        let [allowed, possible] = reachability.ports(ids).map(Clone::clone);
        let name = direction.name();
        let unknown = possible.difference(&allowed).intersection(&violation.ports);
        if !unknown.is_empty() {
            sentences.push(format!("{name}: {}", unknown_text(reachability.cluster(INPUT), pod, direction)));
        } else if violation.is_allowed {
            let text = match reachability.allowing(INPUT, pod, direction, remote, &violation.ports) {
                RuleCause::NotIsolated => format!("no policy isolates {}", pod.title()),
                RuleCause::Rules(rules) => format!("allowed by {}", rules_text(&rules)),
            };
            sentences.push(format!("{name}: {text}"));
        } else if !violation.ports.difference(&possible).is_empty() {
            let policies = reachability.isolating(INPUT, pod, direction);
            let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
            let policies = listed("NetworkPolicy", &names);
            sentences.push(format!("{name}: isolated by {policies}; no rule allows it"));
        }
    }
    sentences
}

/// Returns why the verdict of a pod in this direction is unknown.
fn unknown_text(cluster: &OfflineCluster, pod: &PodKey, direction: Direction) -> String {
    let pod = cluster.state().pods.get(pod);
    let indices = pod.map(|pod| cluster.unevaluated_for_pod(pod, direction)).unwrap_or_default();
    let policies = indices.iter().map(|index| &cluster.unevaluated()[*index]);
    let names: Vec<String> = policies.map(|policy| format!("{} {}", policy.kind, policy.name)).collect();
    if names.is_empty() {
        return "an ipBlock may contain an unknown address; set --pod-cidr".to_owned();
    }
    format!("netpol does not evaluate {}", listed("", &names))
}

/// Checks that each of the pods is isolated in each of these directions.
fn check_isolated(
    reachability: &Reachability<'_>,
    ends: &Ends,
    directions: &[Direction],
    namespace: &str,
) -> Result<CheckResult> {
    let cluster = reachability.cluster(INPUT);
    let selected = select(cluster, ends, namespace)?;
    if !selected.addresses.is_empty() {
        bail!("only pods can be isolated; write workloads, pods, labels or NAMESPACE/*");
    }
    let (mut worst, mut violations) = (None::<(Outcome, Counterexample)>, 0);
    for pod in &selected.pods {
        for direction in directions {
            if !reachability.isolating(INPUT, pod, *direction).is_empty() {
                continue;
            }
            violations += 1;
            let may_change = cluster.state().pods.get(pod).map(|pod| cluster.unevaluated_for_pod(pod, *direction));
            let is_unknown = may_change.is_some_and(|policies| !policies.is_empty());
            let (outcome, verdict) =
                if is_unknown { (Outcome::Unknown, "unknown") } else { (Outcome::Failed, "not isolated") };
            let text =
                if is_unknown { unknown_text(cluster, pod, *direction) } else { "no policy isolates it".to_owned() };
            let because = vec![format!("{}: {text}", direction.name())];
            if worst.as_ref().is_none_or(|(worst, _)| *worst < outcome) {
                let what = pod.title();
                worst = Some((outcome, Counterexample { what, port: None, ports: None, verdict, because }));
            }
        }
    }
    let (outcome, example) = worst.map_or((Outcome::Passed, None), |(outcome, example)| (outcome, Some(example)));
    Ok((outcome, example, violations))
}

/// Finds the destinations that the ends of an expectation stand for. `ports`: the ports of the expectation. If an end
/// is a Service, these are ports of the Service, not target ports.
fn destinations(
    cluster: &OfflineCluster,
    Ends(ends): &Ends,
    ports: &Ports,
    namespace: &str,
) -> Result<Vec<Destination>> {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for end in ends {
        match end {
            ExpectedEnd::End(EndArgument::Service(written, name)) => {
                let key = ServiceKey::new(written.as_deref().unwrap_or(namespace), name.as_str());
                found.extend(services::destinations(cluster, &key, ports)?);
            }
            other => others.push(other.clone()),
        }
    }
    if !others.is_empty() {
        let selected = select(cluster, &Ends(others), namespace)?;
        found.insert(0, Destination { selected, ports: ports.set(), service: None });
    }
    Ok(found)
}

/// Finds the pods and addresses that these ends stand for. None of the ends may be a Service. An end that selects
/// pods must stand for at least one pod, because an expectation about nothing would always pass.
fn select(cluster: &OfflineCluster, Ends(ends): &Ends, namespace: &str) -> Result<Selected> {
    let mut selected = Selected::default();
    let state = cluster.state();
    let selectable = || state.pods.values().filter(|pod| pod.is_selectable() && !pod.addresses.is_empty());
    for end in ends {
        let found: Vec<PodKey> = match end {
            ExpectedEnd::AllPods => selectable().map(|pod| pod.key.clone()).collect(),
            ExpectedEnd::Namespace(name) => {
                selectable().filter(|pod| *pod.key.namespace == **name).map(|pod| pod.key.clone()).collect()
            }
            ExpectedEnd::End(EndArgument::Internet) => {
                selected.addresses = selected.addresses.union(&ends::internet(cluster));
                continue;
            }
            ExpectedEnd::End(EndArgument::Range(range)) => {
                selected.addresses = selected.addresses.union(&AddressSet::of([*range]));
                selected.pods.extend(pods_in(cluster, &AddressSet::of([*range])));
                continue;
            }
            ExpectedEnd::End(EndArgument::Address(address)) => {
                let set = AddressSet::of_addresses([*address]);
                selected.pods.extend(pods_in(cluster, &set));
                selected.addresses = selected.addresses.union(&set);
                continue;
            }
            ExpectedEnd::End(argument) => {
                let set = ends::find(cluster, argument, namespace)?;
                let pods = set.ends.into_iter().filter_map(|(end, _)| match end {
                    End::Pod(key) => Some(key),
                    End::Address(_) | End::Service(_) => None,
                });
                let pods: Vec<PodKey> = pods.collect();
                if let Some(absent) = pods.iter().find(|pod| !state.pods.contains_key(*pod)) {
                    bail!("{} not found in the input; check its namespace and name", absent.title());
                }
                pods.into_iter()
                    .filter(|key| state.pods.get(key).is_some_and(netpol_policy::model::Pod::is_selectable))
                    .collect()
            }
        };
        if found.is_empty() {
            bail!("{} has no pod that policies can select", end_text(end));
        }
        selected.pods.extend(found);
    }
    Ok(selected)
}

fn end_text(end: &ExpectedEnd) -> String {
    match end {
        ExpectedEnd::AllPods => "the input".to_owned(),
        ExpectedEnd::Namespace(name) => format!("namespace {name}"),
        ExpectedEnd::End(_) => "an end".to_owned(),
    }
}

/// Returns the pods that have a known address in a set.
fn pods_in<'c>(cluster: &'c OfflineCluster, set: &'c AddressSet) -> impl Iterator<Item = PodKey> + 'c {
    let pods = cluster.state().pods.values().filter(|pod| pod.is_selectable());
    let is_known = |address: &&std::net::IpAddr| !netpol_policy::offline::is_placeholder(**address);
    let is_inside = move |pod: &&netpol_policy::model::Pod| {
        pod.addresses.iter().filter(is_known).any(|address| set.contains(*address))
    };
    pods.filter(is_inside).map(|pod| pod.key.clone())
}

/// Returns all pods and addresses that are not selected.
fn complement(cluster: &OfflineCluster, selected: &Selected) -> Selected {
    let pods = cluster.state().pods.values().filter(|pod| pod.is_selectable() && !pod.addresses.is_empty());
    let pods = pods.map(|pod| &pod.key).filter(|key| !selected.pods.contains(*key)).cloned().collect();
    let all = AddressSet::of(["0.0.0.0/0", "::/0"].iter().filter_map(|text| text.parse().ok()));
    Selected { pods, addresses: all.difference(&selected.addresses) }
}

/// Groups the pods and addresses by their [`EndId`].
fn members_by_end(reachability: &Reachability<'_>, selected: &Selected) -> Vec<EndMembers> {
    let mut by_end: BTreeMap<EndId, Vec<PodKey>> = BTreeMap::new();
    for pod in &selected.pods {
        if let Some(end) = reachability.end_of(INPUT, pod) {
            by_end.entry(end).or_default().push(pod.clone());
        }
    }
    let pods = by_end.into_iter().map(|(end, pods)| EndMembers { end, pods, addresses: AddressSet::default() });
    let outside = reachability.outside_in(&selected.addresses).into_iter();
    pods.chain(outside.map(|(end, addresses)| EndMembers { end, pods: Vec::new(), addresses })).collect()
}
