//! `netpol why`: shows the recent denials of a pod, from its Events, and what its policies allow. The user needs rights
//! only in the pod's namespace.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use netpol_api::{EndFilter, format_duration};
use netpol_common::Direction;
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::explain::describe_rule;
use netpol_policy::model::{Pod, PodKey, WorkloadKey};
use netpol_policy::offline::OfflineCluster;
use netpol_policy::reference;
use netpol_policy::text::Safe;
use serde::Serialize;

use crate::Exit;
use crate::args::{InputOptions, MatrixOptions, MatrixOutput, Output, ShownOptions, WhyOptions};
use crate::ends::{EndArgument, MatrixEnd};
use crate::flows::EndMatch;
use crate::input::Input;
use crate::live::{self, Missing, Needed};
use crate::matrix;
use crate::output::print_json;
use crate::remote::{Kube, progress, runtime, within};
use crate::table::{self, counted, text_width};
use crate::unevaluated;

/// `reportingController` of the Events that agents write.
const CONTROLLER: &str = "netpol-agent";
/// The maximum number of denials that are printed. The same limit applies separately to would-be denials.
const MAX_PRINTED: usize = 20;

pub(crate) fn run(options: &WhyOptions, out: &mut impl Write) -> Result<Exit> {
    let (answer, input) = runtime()?.block_on(read_answer(options))?;
    if options.output == Output::Json {
        print_json(out, &answer)?;
        return Ok(Exit::Ok);
    }
    input.report();
    print_denials(out, &answer)?;
    for direction in [&answer.egress, &answer.ingress] {
        print_direction(out, direction)?;
    }
    print_connections(&answer, &input, out)?;
    print_missing(out, &answer)?;
    Ok(Exit::Ok)
}

/// The output of `-o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// The pod or workload, such as `pod shop/web-0`.
    subject: String,
    pods: Vec<String>,
    denials: Vec<Denial>,
    /// Why `denials` is empty, although there may be denials.
    #[serde(skip_serializing_if = "Option::is_none")]
    denials_unknown_because: Option<String>,
    egress: Allowed,
    ingress: Allowed,
    missing: Vec<Missing>,
    /// The namespace of the pods.
    #[serde(skip)]
    namespace: String,
}

/// The `reason` of an Event about a would-be denial.
const SHADOW_DENIED: &str = "NetworkPolicyShadowDenied";

/// A denial or would-be denial, as an agent has recorded it in an Event.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Denial {
    pod: String,
    /// Whether this is a would-be denial: the traffic is allowed, but policies in shadow mode would deny it.
    shadow: bool,
    reason: String,
    note: String,
    count: i32,
    last: Option<String>,
    node: Option<String>,
}

/// What the policies allow in one direction.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Allowed {
    direction: &'static str,
    /// The policies that isolate the pods in this direction. If there are none, everything is allowed.
    policies: Vec<String>,
    rules: Vec<AllowedRule>,
}

/// A rule of the policies that isolate the pods.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AllowedRule {
    policy: String,
    path: String,
    allows: String,
}

async fn read_answer(options: &WhyOptions) -> Result<(Answer, Input)> {
    let (kube, limit) = (Kube::open(&options.api.kube, "").await?, options.api.request_timeout);
    let default = options.namespace.clone().unwrap_or_else(|| kube.namespace.clone());
    let end = match &options.pod {
        EndMatch::Pod(name) => EndArgument::Pod(Some(default), name.clone()),
        EndMatch::Filter(EndFilter::Pod { namespace, name }) => EndArgument::Pod(Some(namespace.clone()), name.clone()),
        EndMatch::Workload(kind, namespace, name) => {
            EndArgument::Workload(*kind, Some(namespace.clone().unwrap_or(default)), name.clone())
        }
        EndMatch::Filter(_) | EndMatch::Service(..) => {
            bail!(
                "why needs a pod or a workload, such as pod/web-0 or deploy/web; see netpol explain for Services and addresses"
            )
        }
    };
    let namespace = end.namespace("").unwrap_or_default().to_owned();
    let needed = Needed {
        namespaces: BTreeSet::from([namespace.clone()]),
        workloads: if let EndArgument::Workload(kind, ..) = end { BTreeSet::from([kind]) } else { BTreeSet::new() },
    };
    let (input, events) = progress("the objects of the namespace", async {
        tokio::join!(live::read(&kube, &needed, limit), list_events(&kube, &namespace, limit))
    })
    .await;
    let input = input?;
    let cluster = input.cluster(&InputOptions::default());
    let (subject, pods) = find(&cluster, &end, &input)?;
    let names: BTreeSet<&str> = pods.iter().map(|pod| &*pod.key.name).collect();
    let (denials, denials_unknown_because) = match events {
        Ok(events) => (denials(events, &names, &namespace), None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let allowed = |direction| allowed(cluster.state(), &pods, direction);
    let answer = Answer {
        subject,
        pods: pods.iter().map(|pod| pod.key.to_string()).collect(),
        denials,
        denials_unknown_because,
        egress: allowed(Direction::Egress),
        ingress: allowed(Direction::Ingress),
        missing: input.missing.clone(),
        namespace,
    };
    Ok((answer, input))
}

/// Lists the Events that agents have written in a namespace. The error is a text for the output.
async fn list_events(kube: &Kube, namespace: &str, limit: Duration) -> Result<Vec<Event>, String> {
    let api: Api<Event> = Api::namespaced(kube.client.clone(), namespace);
    let events = within(limit, "", api.list(&ListParams::default())).await?;
    let of_agents = events.items.into_iter().filter(|event| event.reporting_controller.as_deref() == Some(CONTROLLER));
    Ok(of_agents.collect())
}

/// `end` is the pod or workload of the command line. Returns its name for messages, and its pods.
fn find(cluster: &OfflineCluster, end: &EndArgument, input: &Input) -> Result<(String, Vec<Pod>)> {
    let keys: Vec<PodKey> = match end {
        EndArgument::Workload(kind, Some(namespace), name) => {
            let key = WorkloadKey::new(*kind, namespace.as_str(), name.as_str());
            cluster.workloads().pods(&key).to_vec()
        }
        EndArgument::Pod(Some(namespace), name) => vec![PodKey::new(namespace.as_str(), name.as_str())],
        _ => Vec::new(),
    };
    let title = match end {
        EndArgument::Workload(kind, Some(namespace), name) => format!("{} {namespace}/{name}", kind.name()),
        EndArgument::Pod(Some(namespace), name) => format!("pod {namespace}/{name}"),
        _ => String::new(),
    };
    let pods: Vec<Pod> = keys.iter().filter_map(|key| cluster.state().pods.get(key).cloned()).collect();
    if !pods.is_empty() {
        return Ok((title, pods));
    }
    // The cause can be that the user cannot list a kind in the namespace of `end`. Items of `input.missing` without a
    // namespace are about other namespaces or about kinds without namespaces, so they cannot be the cause.
    let missing: Vec<String> =
        input.missing.iter().filter(|missing| missing.namespace.is_some()).map(ToString::to_string).collect();
    let because = if missing.is_empty() { String::new() } else { format!("; {}", missing.join("; ")) };
    Err(anyhow!("{title} not found; check its name and namespace (-n){because}"))
}

/// Returns the denials of these pods, the latest first.
fn denials(events: Vec<Event>, pods: &BTreeSet<&str>, namespace: &str) -> Vec<Denial> {
    let mut denials: Vec<(Option<Timestamp>, Denial)> = events
        .into_iter()
        .filter_map(|event| {
            let regarding = event.regarding?;
            let name = regarding.name.filter(|name| pods.contains(name.as_str()))?;
            if regarding.kind.as_deref() != Some("Pod") {
                return None;
            }
            let count = event.series.as_ref().map_or(1, |series| series.count);
            let last = event.series.map(|series| series.last_observed_time).or(event.event_time).map(|time| time.0);
            let reason = event.reason.unwrap_or_default();
            let denial = Denial {
                pod: format!("{namespace}/{name}"),
                shadow: reason == SHADOW_DENIED,
                reason,
                note: event.note.unwrap_or_default(),
                count,
                last: last.map(|time| time.to_string()),
                node: event.reporting_instance,
            };
            Some((last, denial))
        })
        .collect();
    denials.sort_by_key(|(last, _)| std::cmp::Reverse(*last));
    denials.into_iter().map(|(_, denial)| denial).collect()
}

/// Returns what the policies of these pods allow in one direction.
fn allowed(state: &ClusterState, pods: &[Pod], direction: Direction) -> Allowed {
    let mut policies = BTreeSet::new();
    let mut rules = Vec::new();
    for policy in pods.iter().flat_map(|pod| reference::isolating(state, pod, direction)) {
        if !policies.insert(policy.key.to_string()) {
            continue;
        }
        let policy_rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for (index, rule) in policy_rules.iter().flatten().enumerate() {
            rules.push(AllowedRule {
                policy: policy.key.to_string(),
                path: format!("spec.{}[{index}]", direction.name()),
                allows: describe_rule(policy, rule),
            });
        }
    }
    Allowed { direction: direction.name(), policies: policies.into_iter().collect(), rules }
}

fn print_denials(out: &mut impl Write, answer: &Answer) -> Result<()> {
    let subject = &answer.subject;
    if let Some(error) = &answer.denials_unknown_because {
        return paragraph(out, &format!("{subject}: denials are unknown, cannot list Events: {error}"), 0);
    }
    let (shadow, denied): (Vec<&Denial>, Vec<&Denial>) = answer.denials.iter().partition(|denial| denial.shadow);
    if denied.is_empty() {
        let text = format!(
            "{subject}: no denials in its Events. Agents write Events only with --kube-events, and the API server deletes \
             them after an hour"
        );
        paragraph(out, &text, 0)?;
    } else {
        writeln!(out, "{}: denied", Safe(subject))?;
        print_events(out, answer, &denied)?;
    }
    if !shadow.is_empty() {
        paragraph(out, &format!("{subject}: allowed, but policies in shadow mode would deny it"), 0)?;
        print_events(out, answer, &shadow)?;
    }
    Ok(())
}

fn print_events(out: &mut impl Write, answer: &Answer, denials: &[&Denial]) -> Result<()> {
    let now = Timestamp::now();
    for denial in denials.iter().take(MAX_PRINTED) {
        let age =
            denial.last.as_deref().and_then(|last| age(now, last)).unwrap_or_else(|| "at an unknown time".to_owned());
        let count = usize::try_from(denial.count).unwrap_or_default();
        let pod = if answer.pods.len() > 1 { format!("{}: ", denial.pod) } else { String::new() };
        paragraph(out, &format!("{age}, {}: {pod}{}", counted(count, "packet"), denial.note), 2)?;
    }
    if denials.len() > MAX_PRINTED {
        writeln!(out, "  {} more: see -o json", denials.len() - MAX_PRINTED)?;
    }
    Ok(())
}

/// Returns text such as `2m ago`.
fn age(now: Timestamp, last: &str) -> Option<String> {
    let seconds = now.as_second() - last.parse::<Timestamp>().ok()?.as_second();
    let seconds = u64::try_from(seconds).unwrap_or_default();
    Some(match seconds {
        0..120 => format!("{} ago", format_duration(Duration::from_secs(seconds))),
        120..7_200 => format!("{}m ago", seconds / 60),
        _ => format!("{}h ago", seconds / 3_600),
    })
}

fn print_direction(out: &mut impl Write, allowed: &Allowed) -> Result<()> {
    writeln!(out)?;
    if allowed.policies.is_empty() {
        return paragraph(out, &format!("{}: all allowed, no policy isolates it", allowed.direction), 0);
    }
    let text = format!("{}: isolated by {}", allowed.direction, allowed.policies.join(", "));
    paragraph(out, &text, 0)?;
    if allowed.rules.is_empty() {
        return paragraph(out, "no rule allows anything", 2);
    }
    for rule in &allowed.rules {
        paragraph(out, &format!("{} {}: {}", rule.policy, rule.path, rule.allows), 2)?;
    }
    Ok(())
}

/// Prints the exact ports at which the pod can connect to other pods, and other pods to it. For a workload, prints only
/// the ports of its first pod. Only pods that the user can list are included.
fn print_connections(answer: &Answer, input: &Input, out: &mut impl Write) -> Result<()> {
    let Some((namespace, name)) = answer.pods.first().and_then(|pod| pod.split_once('/')) else { return Ok(()) };
    let found = input.parsed.objects.iter().find_map(|located| match &located.object {
        netpol_policy::model::Object::Pod(pod) if (&*pod.key.namespace, &*pod.key.name) == (namespace, name) => {
            Some(pod)
        }
        _ => None,
    });
    match found {
        Some(found) if found.is_selectable() => {}
        Some(_) => return paragraph(out, "policies do not apply to it: it is finished, or on the host network", 0),
        None if answer.missing.iter().any(|missing| missing.kind == "Pods" && missing.namespace.is_some()) => {
            return paragraph(out, "you cannot list its pods, so no connections are listed", 0);
        }
        None => return paragraph(out, "it has no pods now, so no connections are listed", 0),
    }
    let pod = || Some(MatrixEnd::End(EndArgument::Pod(Some(namespace.to_owned()), name.to_owned())));
    for (from, to) in [(pod(), None), (None, pod())] {
        // If the user cannot list the pods of other namespaces, only connections with pods of this namespace are shown.
        let is_limited = answer.missing.iter().any(|missing| missing.kind == "Pods");
        let namespaces = if is_limited { vec![answer.namespace.clone()] } else { Vec::new() };
        let options = MatrixOptions {
            input: InputOptions::default(),
            shown: ShownOptions { namespaces, ..ShownOptions::default() },
            ports: Vec::new(),
            from,
            to,
            only_allowed: true,
            addresses: Vec::new(),
            output: MatrixOutput::Table,
        };
        let rows = matrix::rows(&options, input)?;
        let others = if is_limited { format!("other pods of namespace {namespace}") } else { "other pods".to_owned() };
        let connections = match options.from {
            Some(_) => format!("from {namespace}/{name} to {others}"),
            None => format!("from {others} to {namespace}/{name}"),
        };
        writeln!(out)?;
        if rows.is_empty() {
            paragraph(out, &format!("ports allowed {connections}: none"), 0)?;
            continue;
        }
        paragraph(out, &format!("ports allowed {connections}:"), 0)?;
        for row in rows {
            // One end of each row is the pod. Only the other end is printed.
            let other = if options.from.is_some() { row.to } else { row.from };
            paragraph(out, &format!("{other}: {}", row.ports), 2)?;
        }
    }
    if !input.parsed.unevaluated.is_empty() {
        writeln!(out)?;
        unevaluated::print(out, &input.parsed.unevaluated, text_width())?;
    }
    Ok(())
}

/// Prints which objects the answer does not include: one paragraph with the kinds that the user cannot list in other
/// namespaces, and one paragraph for each kind that the user cannot list in the pod's namespace.
fn print_missing(out: &mut impl Write, answer: &Answer) -> Result<()> {
    let kinds: Vec<&str> = answer
        .missing
        .iter()
        .filter(|missing| missing.namespace.is_none())
        .map(|missing| missing.kind.as_str())
        .collect();
    if !kinds.is_empty() {
        writeln!(out)?;
        let text =
            format!("not complete outside of namespace {}: you cannot list {}", answer.namespace, kinds.join(", "));
        paragraph(out, &text, 0)?;
    }
    for missing in answer.missing.iter().filter(|missing| missing.namespace.is_some()) {
        paragraph(out, &format!("not complete: {missing}"), 0)?;
    }
    Ok(())
}

fn paragraph(out: &mut impl Write, text: &str, indent: usize) -> Result<()> {
    Ok(table::paragraph(out, text, text_width(), indent)?)
}
