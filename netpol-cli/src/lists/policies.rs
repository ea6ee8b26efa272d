//! `netpol policies`: what each policy selects, and the flows of each rule, on all nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;

use anyhow::Result;
use netpol_api::{FlowDirection, PolicyList, PolicyMode, PolicyStatus, RuleStatus};
use netpol_policy::text::Safe;
use serde::Serialize;

use super::pods_with_labels;
use crate::Exit;
use crate::args::{ListOptions, Output};
use crate::columns::{Style, TextCell, TextTable, Tone, number, some_of, text};
use crate::output::{NotEvaluated, print_items};
use crate::remote::{Answer, Fleet, runtime};
use crate::scope::Scope;
use crate::table::{counted, counted_u64, paragraph};

/// The maximum number of rules of a policy in the table.
const RULES_SHOWN: usize = 100;

/// The maximum number of nodes that a note about a policy names.
const NODES_SHOWN: usize = 3;

pub(crate) fn run(options: &ListOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(list(options, out))
}

async fn list(options: &ListOptions, out: &mut impl Write) -> Result<Exit> {
    let mut fleet = Fleet::find(&options.agents).await?;
    let scope = Scope::new(&options.scope, &fleet)?;
    let answers: Vec<Answer<PolicyList>> = fleet.get("/v1/policies").await;
    // The pods that the option `-l` matches; `None` without `-l`.
    let pods_with_labels = pods_with_labels(&scope, &mut fleet).await;
    let lists: Vec<PolicyList> = answers.into_iter().map(|answer| answer.content).collect();
    let mut policies = merge(&lists);
    policies.retain(|policy| {
        scope.has_namespace(&policy.namespace)
            && pods_with_labels.as_ref().is_none_or(|pods| !pods.is_disjoint(&policy.pods))
    });
    match options.output {
        Output::Json => print_items(out, &policies, fleet.failures())?,
        Output::Table if lists.is_empty() => {}
        Output::Table => {
            let style = Style::detect();
            print(out, &policies, &scope, style)?;
            if !policies.is_empty() {
                print_notes(out, &lists, style)?;
            }
        }
    }
    fleet.finish(lists.len())
}

/// The status of a policy on all nodes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    namespace: String,
    name: String,
    mode: PolicyMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspended_until: Option<String>,
    /// False if this policy is in shadow mode or suspended, and is not evaluated for some of its pods. In this case,
    /// flows of these pods are not counted, even if the policy would deny them. Always true for an enforced policy.
    evaluated: bool,
    /// The nodes on which the policy is not evaluated for some of its pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_evaluated_on: Vec<NotEvaluated>,
    directions: Vec<FlowDirection>,
    /// The pods that the policy selects, on the nodes that responded.
    pods: BTreeSet<String>,
    rules: Vec<RuleStatus>,
    /// The position of each rule in `rules`, by its path.
    #[serde(skip)]
    rule_positions: HashMap<String, usize>,
    denied_flows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_denied: Option<String>,
    shadow_denied_flows: u64,
    diagnostics: BTreeSet<String>,
    /// The nodes on which the policy is only partly enforced.
    partial_on: Vec<String>,
}

impl Policy {
    /// Creates the policy from its status on the first node, without pods, rules and counts. [`Self::add`] adds those
    /// of each node.
    fn new(first: &PolicyStatus) -> Self {
        Self {
            namespace: first.namespace.clone(),
            name: first.name.clone(),
            mode: first.mode,
            suspended_until: first.suspended_until.clone(),
            evaluated: true,
            not_evaluated_on: Vec::new(),
            directions: first.directions.clone(),
            pods: BTreeSet::new(),
            rules: Vec::new(),
            rule_positions: HashMap::new(),
            denied_flows: 0,
            last_denied: None,
            shadow_denied_flows: 0,
            diagnostics: BTreeSet::new(),
            partial_on: Vec::new(),
        }
    }

    /// Adds the policy's pods, rules and counts on a node.
    fn add(&mut self, status: &PolicyStatus, node: &str) {
        self.pods.extend(status.pods.iter().cloned());
        self.denied_flows += status.denied_flows;
        self.shadow_denied_flows += status.shadow_denied_flows;
        self.last_denied = self.last_denied.take().max(status.last_denied.clone());
        self.diagnostics.extend(status.diagnostics.iter().cloned());
        if !status.evaluated {
            self.evaluated = false;
            self.not_evaluated_on.push(NotEvaluated::new(node, status.not_evaluated_because.as_deref()));
        }
        if status.partial.is_some() {
            self.partial_on.push(node.to_owned());
        }
        for rule in &status.rules {
            if let Some(position) = self.rule_positions.get(&rule.path) {
                let total = &mut self.rules[*position];
                total.flows += rule.flows;
                total.last_flow = total.last_flow.take().max(rule.last_flow.clone());
            } else {
                self.rule_positions.insert(rule.path.clone(), self.rules.len());
                self.rules.push(rule.clone());
            }
        }
    }
}

/// Combines the status of each policy on all nodes.
fn merge(lists: &[PolicyList]) -> Vec<Policy> {
    let mut policies: BTreeMap<(&str, &str), Policy> = BTreeMap::new();
    for list in lists {
        for status in &list.items {
            let key = (status.namespace.as_str(), status.name.as_str());
            policies.entry(key).or_insert_with(|| Policy::new(status)).add(status, &list.node);
        }
    }
    policies.into_values().collect()
}

/// Prints a row for each policy, and below it a row for each of its rules.
fn print(out: &mut impl Write, policies: &[Policy], scope: &Scope, style: Style) -> Result<()> {
    if policies.is_empty() {
        writeln!(out, "no policies{}", scope.describe())?;
        return Ok(());
    }
    let mut table = TextTable::new(&[
        text("POLICY"),
        text("MODE").optional(2),
        number("PODS"),
        number("ALLOWED"),
        number("DENIED"),
        number("SHADOW").optional(3),
        text("LAST").optional(1),
    ]);
    for policy in policies {
        let mode = match (policy.mode, &policy.suspended_until) {
            (PolicyMode::Shadow, _) if !policy.evaluated => TextCell::toned("not evaluated", Some(Tone::Bad)),
            (PolicyMode::Shadow, _) => TextCell::toned("shadow", Some(Tone::Notice)),
            (PolicyMode::Enforce, Some(_)) => TextCell::toned("suspended", Some(Tone::Bad)),
            (PolicyMode::Enforce, None) => "enforce".into(),
        };
        table.add_row([
            format!("{}/{}", policy.namespace, policy.name).into(),
            mode,
            TextCell::toned(policy.pods.len(), policy.pods.is_empty().then_some(Tone::Notice)),
            policy.rules.iter().map(|rule| rule.flows).sum::<u64>().into(),
            TextCell::toned(policy.denied_flows, (policy.denied_flows > 0).then_some(Tone::Bad)),
            policy.shadow_denied_flows.into(),
            policy.last_denied.as_deref().unwrap_or_default().into(),
        ]);
        for rule in policy.rules.iter().take(RULES_SHOWN) {
            let (empty, path) = (|| TextCell::from(""), format!("  {}", rule.path));
            let last = match &rule.last_flow {
                Some(time) => time.into(),
                None if rule.flows == 0 => TextCell::toned("never", Some(Tone::Notice)),
                None => empty(),
            };
            table.add_row([path.into(), empty(), empty(), rule.flows.into(), empty(), empty(), last]);
        }
    }
    table.print(out, style.table, style.color)?;
    for policy in policies {
        let mut note = |text| paragraph(out, format!("{}/{}: {text}", policy.namespace, policy.name), style.text, 0);
        if !policy.evaluated {
            let nodes: Vec<String> = policy.not_evaluated_on.iter().map(ToString::to_string).collect();
            note(format!("NOT EVALUATED on {}", some_of(&nodes, NODES_SHOWN)))?;
        }
        let more = policy.rules.len().saturating_sub(RULES_SHOWN);
        if more > 0 {
            note(format!("{}: see -o json", counted(more, "more rule")))?;
        }
        if !policy.partial_on.is_empty() {
            note(format!("only partly enforced on {}", some_of(&policy.partial_on, NODES_SHOWN)))?;
        }
        for diagnostic in &policy.diagnostics {
            note(diagnostic.clone())?;
        }
    }
    Ok(())
}

/// Prints notes about the numbers: since when flows are counted, and the nodes on which allowed flows are not counted.
fn print_notes(out: &mut impl Write, lists: &[PolicyList], style: Style) -> Result<()> {
    // Each agent counts since its own start. The latest start is the time since which all agents have counted.
    if let Some(since) = lists.iter().map(|list| &list.counted_since).max() {
        writeln!(out, "\nflows are counted since {} or earlier", Safe(since))?;
    }
    let nodes_without: Vec<&str> =
        lists.iter().filter(|list| !list.counts_allowed_flows).map(|list| list.node.as_str()).collect();
    if !nodes_without.is_empty() {
        let text = format!("allowed flows are not counted on {} (--record-flows denied)", nodes_without.join(", "));
        paragraph(out, text, style.text, 0)?;
    }
    let other: u64 = lists.iter().map(|list| list.uncounted_flows).sum();
    if other > 0 {
        let flows = counted_u64(other, "allowed flow");
        writeln!(out, "not in the table: {flows} by unknown rules or rules without a counter")?;
    }
    Ok(())
}
