//! `netpol shadow report`: prints the would-be denials of all nodes. A would-be denial is an allowed flow that policies
//! in shadow mode would have denied.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::Result;
use netpol_api::{FlowDirection, ShadowReport, WorkloadEnd, format_duration};
use serde::Serialize;

use crate::Exit;
use crate::args::{Output, ShadowOptions};
use crate::columns::{Style, TextTable, number, some_of, text};
use crate::flows::{protocol_port, workload_end};
use crate::output::{NotEvaluated, print_json};
use crate::remote::{Answer, Failure, Fleet, runtime};
use crate::scope::Scope;
use crate::table::{counted, counted_u64, paragraph, time_span};

/// The maximum number of nodes that a line of the output names.
const NODES_SHOWN: usize = 3;

pub(crate) fn run(options: &ShadowOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(report(options, out))
}

async fn report(options: &ShadowOptions, out: &mut impl Write) -> Result<Exit> {
    let mut fleet = Fleet::find(&options.list.agents).await?;
    let scope = Scope::new(&options.list.scope, &fleet)?;
    let path = format!("/v1/shadow?since={}", format_duration(options.since));
    let answers: Vec<Answer<ShadowReport>> = fleet.get(&path).await;
    let reports: Vec<ShadowReport> = answers.into_iter().map(|answer| answer.content).collect();
    let policies = merge(&reports, &scope);
    match options.list.output {
        Output::Json => print_json(
            out,
            &JsonOutput { items: &policies, nodes: reports.iter().map(coverage).collect(), failures: fleet.failures() },
        )?,
        Output::Table if reports.is_empty() => {}
        Output::Table => {
            print(out, &policies, &reports, (&scope, &time_span(options.since)), Style::detect())?;
        }
    }
    fleet.finish(reports.len())
}

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    items: &'a [ShadowedPolicy],
    nodes: Vec<Coverage<'a>>,
    failures: &'a [Failure],
}

/// What the report of a node contains, and since when. [`ShadowReport`] describes the fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Coverage<'a> {
    node: &'a str,
    since: &'a str,
    collected_since: &'a str,
    observe: bool,
    unlisted_flows: u64,
}

fn coverage(report: &ShadowReport) -> Coverage<'_> {
    let ShadowReport { node, since, collected_since, observe, unlisted_flows, .. } = report;
    Coverage { node, since, collected_since, observe: *observe, unlisted_flows: *unlisted_flows }
}

/// A policy in shadow mode, with its would-be denials on all nodes.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShadowedPolicy {
    policy: String,
    /// The number of pods that the policy selects.
    pods: usize,
    /// The time since which the policy is in shadow mode on all nodes with a selected pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    /// Whether the policy is evaluated on all nodes. If not, flows that it would deny are missing.
    evaluated: bool,
    /// The nodes on which the policy is not evaluated for at least one of its pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_evaluated_on: Vec<NotEvaluated>,
    flows: u64,
    /// The number of unlisted would-be denials in the policy's namespace: the agents only count them. They may be
    /// denials of this policy.
    unlisted_flows: u64,
    denials: Vec<Denial>,
}

/// Would-be denials with the same properties ([`DenialKey`]).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Denial {
    from: WorkloadEnd,
    to: WorkloadEnd,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    protocol: String,
    direction: FlowDirection,
    reason: String,
    flows: u64,
    first: String,
    last: String,
}

/// Source, destination, port, protocol, direction and reason.
type DenialKey<'r> = (&'r WorkloadEnd, &'r WorkloadEnd, Option<u16>, &'r str, FlowDirection, &'r str);

/// Combines the reports of all nodes.
fn merge(reports: &[ShadowReport], scope: &Scope) -> Vec<ShadowedPolicy> {
    let mut policies: BTreeMap<&str, ShadowedPolicy> = BTreeMap::new();
    let mut denials: BTreeMap<(&str, DenialKey<'_>), Denial> = BTreeMap::new();
    let is_shown = |policy: &str| policy.split_once('/').is_none_or(|(namespace, _)| scope.has_namespace(namespace));
    for report in reports {
        for on_node in report.policies.iter().filter(|on_node| is_shown(&on_node.policy)) {
            let policy = policies.entry(&on_node.policy).or_default();
            policy.pods += on_node.pods;
            policy.since = policy.since.take().max(Some(on_node.since.clone()));
            policy.unlisted_flows += on_node.unlisted_flows;
            if !on_node.evaluated {
                let because = on_node.not_evaluated_because.as_deref();
                policy.not_evaluated_on.push(NotEvaluated::new(&report.node, because));
            }
        }
        let shadow: BTreeSet<&str> = report.policies.iter().map(|policy| policy.policy.as_str()).collect();
        for item in &report.items {
            let key: DenialKey<'_> = (&item.from, &item.to, item.port, &item.protocol, item.direction, &item.reason);
            // An item also names enforced policies, which are not the cause of a would-be denial. But if no policy of
            // the item is in shadow mode any more, the denials are counted for all of its policies.
            let in_shadow: Vec<&str> =
                item.policies.iter().map(String::as_str).filter(|name| shadow.contains(name)).collect();
            let named =
                if in_shadow.is_empty() { item.policies.iter().map(String::as_str).collect() } else { in_shadow };
            for policy in named.into_iter().filter(|policy| is_shown(policy)) {
                policies.entry(policy).or_default();
                let denial = denials.entry((policy, key)).or_insert_with(|| Denial {
                    from: item.from.clone(),
                    to: item.to.clone(),
                    port: item.port,
                    protocol: item.protocol.clone(),
                    direction: item.direction,
                    reason: item.reason.clone(),
                    flows: 0,
                    first: item.first.clone(),
                    last: item.last.clone(),
                });
                denial.flows += item.flows;
                denial.first = denial.first.clone().min(item.first.clone());
                denial.last = denial.last.clone().max(item.last.clone());
            }
        }
    }
    for ((policy, _), denial) in denials {
        if let Some(policy) = policies.get_mut(policy) {
            policy.flows += denial.flows;
            policy.denials.push(denial);
        }
    }
    let named = policies.into_iter().map(|(name, policy)| ShadowedPolicy { policy: name.to_owned(), ..policy });
    let mut policies: Vec<ShadowedPolicy> = named.collect();
    for policy in &mut policies {
        policy.evaluated = policy.not_evaluated_on.is_empty();
        policy.denials.sort_by_key(|denial| std::cmp::Reverse(denial.flows));
    }
    policies.sort_by_key(|policy| (policy.evaluated, std::cmp::Reverse(policy.flows)));
    policies
}

fn print(
    out: &mut impl Write,
    policies: &[ShadowedPolicy],
    reports: &[ShadowReport],
    (scope, since): (&Scope, &str),
    style: Style,
) -> Result<()> {
    if policies.is_empty() {
        writeln!(out, "no policy in shadow mode{} selects a pod of these nodes", scope.describe())?;
    }
    for policy in policies {
        let in_shadow_since =
            policy.since.as_ref().map(|since| format!(", in shadow mode since {since}")).unwrap_or_default();
        let heading = format!("{} ({}{in_shadow_since})", policy.policy, counted(policy.pods, "pod"));
        if !policy.evaluated {
            paragraph(out, not_evaluated_text(policy), style.text, 0)?;
        }
        if policy.denials.is_empty() {
            paragraph(out, format!("{heading}: {}", without_denials(policy, since)), style.text, 0)?;
            continue;
        }
        let flows = counted_u64(policy.flows, "flow");
        paragraph(out, format!("{heading}: would have denied {flows} in the last {since}"), style.text, 0)?;
        let mut table = TextTable::new(&[
            text("FROM"),
            text("TO"),
            text("PORT"),
            number("FLOWS"),
            text("DIRECTION").optional(2),
            text("LAST").optional(1),
            text("REASON").optional(3),
        ]);
        for denial in &policy.denials {
            table.add_row([
                workload_end(&denial.from).into(),
                workload_end(&denial.to).into(),
                protocol_port(denial.port, &denial.protocol).into(),
                denial.flows.into(),
                denial.direction.name().into(),
                (&denial.last).into(),
                (&denial.reason).into(),
            ]);
        }
        table.print(out, style.table, style.color)?;
        writeln!(out)?;
    }
    print_notes(out, reports, style)
}

/// Returns the text for a policy without a listed denial. If the policy is not evaluated on all nodes, or if flows are
/// not listed, it may have denials.
fn without_denials(policy: &ShadowedPolicy, since: &str) -> String {
    match (policy.evaluated, policy.unlisted_flows) {
        (false, _) => "denials are unknown".to_owned(),
        (true, 0) => format!("would have denied nothing in the last {since}"),
        (true, other) => format!(
            "denials are unknown: {} {} counted, but not listed",
            counted_u64(other, "more would-be denial"),
            if other == 1 { "is" } else { "are" }
        ),
    }
}

fn not_evaluated_text(policy: &ShadowedPolicy) -> String {
    let nodes: Vec<String> = policy.not_evaluated_on.iter().map(ToString::to_string).collect();
    format!("{}: NOT EVALUATED on {}", policy.policy, some_of(&nodes, NODES_SHOWN))
}

/// Prints what the report does not contain.
fn print_notes(out: &mut impl Write, reports: &[ShadowReport], style: Style) -> Result<()> {
    let names = |includes: &dyn Fn(&ShadowReport) -> bool| -> Vec<String> {
        reports.iter().filter(|report| includes(report)).map(|report| report.node.clone()).collect()
    };
    let later = names(&|report| report.collected_since > report.since);
    if let Some(since) = reports.iter().map(|report| &report.collected_since).max()
        && !later.is_empty()
    {
        let nodes = some_of(&later, NODES_SHOWN);
        paragraph(
            out,
            format!(
                "not complete: the agents on these nodes started after the beginning of the period (the last one at {since}): {nodes}"
            ),
            style.text,
            0,
        )?;
    }
    let observing = names(&|report| report.observe);
    if !observing.is_empty() {
        let nodes = some_of(&observing, NODES_SHOWN);
        paragraph(
            out,
            format!("agents with --observe enforce nothing, and report all policies: {nodes}"),
            style.text,
            0,
        )?;
    }
    let other: u64 = reports.iter().map(|report| report.unlisted_flows).sum();
    if other > 0 {
        let (flows, are) = (counted_u64(other, "more flow"), if other == 1 { "is" } else { "are" });
        let text = format!("{flows} {are} counted, but not listed: there are too many different ones");
        paragraph(out, text, style.text, 0)?;
    }
    Ok(())
}
