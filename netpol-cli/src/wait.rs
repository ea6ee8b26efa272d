//! `netpol wait`: waits until the agents of all nodes enforce a policy.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use netpol_api::{Condition, ConditionResult, Target, TargetKind, WaitOutcome, WaitResponse, format_duration};
use netpol_policy::text::Safe;

use crate::Exit;
use crate::args::{Output, WaitOptions};
use crate::message::message;
use crate::output::{print_items, print_json};
use crate::remote::{Answer, Fleet, progress, runtime};
use crate::table::counted;

/// The time after which the pending conditions are printed, if standard error is a terminal.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);
/// The number of nodes that are named for a condition that does not hold.
const NODES_SHOWN: usize = 5;

pub(crate) fn run(options: &WaitOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(wait(options, out))
}

async fn wait(options: &WaitOptions, out: &mut impl Write) -> Result<Exit> {
    let mut fleet = Fleet::find(&options.agents).await?;
    if options.agents.nodes.is_empty() && options.conditions.iter().any(needs_all_nodes) {
        let found = progress("the API server", fleet.find_nodes_without_agent()).await;
        if let Err(error) = found {
            message!("cannot check which nodes have no agent, because the nodes cannot be listed: {}", Safe(error));
        }
    }
    let waited = responses(options, &mut fleet).await;
    let results: Vec<Vec<NodeResult<'_>>> =
        (0..options.conditions.len()).map(|index| results_of_condition(&waited, index)).collect();
    match (options.output, fleet.is_local(), &waited[..]) {
        (Output::Json, true, [response]) => print_json(out, response)?,
        (Output::Json, ..) => print_items(out, &waited, fleet.failures())?,
        (Output::Table, ..) => {
            for (condition, results) in options.conditions.iter().zip(&results) {
                print(out, condition, results, options.timeout)?;
            }
        }
    }
    let exit = fleet.finish(waited.len())?;
    let all_met = results.iter().flatten().all(|(_, result)| result.result == WaitOutcome::Met);
    Ok(if all_met { exit } else { Exit::Negative })
}

/// Returns whether a condition must hold on all nodes. The policies of a pod must be enforced only on the pod's node.
/// All other conditions, even the deletion of a pod, must hold on all nodes.
fn needs_all_nodes(condition: &Condition) -> bool {
    match condition {
        Condition::Enforced(target) => target.kind == TargetKind::Policy,
        Condition::Deleted(_) | Condition::Sync => true,
    }
}

/// The name of a node, and its result for a condition.
type NodeResult<'r> = (&'r str, &'r ConditionResult);

/// Waits on all nodes. If conditions do not hold after [`PROGRESS_DELAY`], prints them to a terminal.
async fn responses(options: &WaitOptions, fleet: &mut Fleet) -> Vec<WaitResponse> {
    if io::stderr().is_terminal() && options.timeout > PROGRESS_DELAY {
        let first = request(options, fleet, PROGRESS_DELAY).await;
        let is_pending =
            |response: &WaitResponse| response.results.iter().any(|result| result.result == WaitOutcome::Timeout);
        if !first.iter().any(is_pending) {
            return first;
        }
        for (index, condition) in options.conditions.iter().enumerate() {
            let results = results_of_condition(&first, index);
            let pending = results.iter().filter(|(_, result)| result.result == WaitOutcome::Timeout);
            for (node, result) in pending.take(NODES_SHOWN) {
                message!("waiting for {} on {}{}", Safe(subject(condition)), Safe(node), Safe(reasons(result)));
            }
        }
        fleet.forget_failures();
        let mut responses = request(options, fleet, options.timeout.saturating_sub(PROGRESS_DELAY)).await;
        add_first_request(&mut responses, &first);
        return responses;
    }
    request(options, fleet, options.timeout).await
}

/// Corrects the times in the responses to the second request, because an agent measures the time of one request only.
/// If a condition timed out in the first request, adds the duration of the first request. Otherwise, replaces the time
/// with that in the first response.
fn add_first_request(responses: &mut [WaitResponse], first: &[WaitResponse]) {
    for response in responses {
        let earlier = first.iter().filter(|earlier| earlier.node == response.node).flat_map(|earlier| &earlier.results);
        for (result, earlier) in response.results.iter_mut().zip(earlier) {
            result.seconds = match earlier.result {
                WaitOutcome::Timeout => result.seconds + PROGRESS_DELAY.as_secs_f64(),
                _ => earlier.seconds,
            };
        }
    }
}

async fn request(options: &WaitOptions, fleet: &mut Fleet, time: Duration) -> Vec<WaitResponse> {
    let mut path = format!("/v1/wait?timeout={}", format_duration(time));
    for condition in &options.conditions {
        path.push_str("&for=");
        path.push_str(&condition.to_string());
    }
    let answers: Vec<Answer<WaitResponse>> = fleet.get_within(&path, time + options.agents.request_timeout).await;
    answers.into_iter().map(|answer| answer.content).collect()
}

/// Returns the results for a condition. The result `Never` means that the condition will never hold on a node, for
/// example because the pod is on another node. `Never` is ignored if at least one node reports another result.
fn results_of_condition(responses: &[WaitResponse], index: usize) -> Vec<NodeResult<'_>> {
    let results = responses.iter().filter_map(|response| Some((response.node.as_str(), response.results.get(index)?)));
    let (never, mut results): (Vec<_>, Vec<_>) = results.partition(|(_, result)| result.result == WaitOutcome::Never);
    if results.is_empty() {
        // If no node that responded has the pod, or the pod is finished, the reason is the same on all nodes. So one
        // result is enough.
        results.extend(never.into_iter().take(1));
    }
    results
}

fn print(out: &mut impl Write, condition: &Condition, results: &[NodeResult<'_>], time: Duration) -> Result<()> {
    let failed: Vec<_> = results.iter().filter(|(_, result)| result.result != WaitOutcome::Met).collect();
    match (&failed[..], results) {
        ([], []) => {}
        ([], _) => writeln!(out, "{}", Safe(success_line(condition, results)))?,
        ([(node, result)], [_]) => {
            message!("error: {}", Safe(failure_line(condition, result, time, node)));
        }
        (failed, results) => {
            for (node, result) in failed.iter().take(NODES_SHOWN) {
                message!("error: node {}: {}", Safe(node), Safe(failure_line(condition, result, time, node)));
            }
            if failed.len() > NODES_SHOWN {
                let others = failed.len() - NODES_SHOWN;
                message!(
                    "error: not met on {} (of {} nodes): see -o json",
                    counted(others, "more node"),
                    results.len()
                );
            }
        }
    }
    Ok(())
}

/// Returns the text for the objects that are enforced: a policy, or the policies of a pod.
fn enforced_objects(target: &Target) -> String {
    match target.kind {
        TargetKind::Pod => format!("the policies of {target}"),
        TargetKind::Policy => target.to_string(),
    }
}

fn subject(condition: &Condition) -> String {
    match condition {
        Condition::Enforced(target) => enforced_objects(target),
        Condition::Deleted(target) => format!("{target} to be deleted"),
        Condition::Sync => "all current objects".to_owned(),
    }
}

fn success_line(condition: &Condition, results: &[NodeResult<'_>]) -> String {
    let node = match results {
        [(node, _)] => (*node).to_owned(),
        _ => format!("{} nodes", results.len()),
    };
    let what = match condition {
        Condition::Enforced(target) => format!("{} enforced on {node}", enforced_objects(target)),
        Condition::Deleted(target) => format!("{target} deleted from {node}"),
        Condition::Sync => format!("all objects enforced on {node}"),
    };
    let pods = match (condition, results.iter().map(|(_, result)| result.pods.len()).sum()) {
        (Condition::Deleted(_), _) => String::new(),
        (_, count) => format!(", {}", counted(count, "pod")),
    };
    let generation = match results {
        [(_, result)] => result.generation.map(|generation| format!("generation {generation}")).unwrap_or_default(),
        _ => String::new(),
    };
    let details = format!("{generation}{pods}");
    let details = details.strip_prefix(", ").unwrap_or(&details);
    let gap = if details.is_empty() { "" } else { ", " };
    let slowest = results.iter().map(|(_, result)| result.seconds).fold(0.0, f64::max);
    format!("{what} ({details}{gap}{:.1} ms)", slowest * 1e3)
}

fn failure_line(condition: &Condition, result: &ConditionResult, time: Duration, node: &str) -> String {
    let subject = subject(condition);
    let reasons = reasons(result);
    match result.result {
        WaitOutcome::Met => subject,
        WaitOutcome::Absent => match condition {
            Condition::Enforced(target) | Condition::Deleted(target) => format!("{target} not found"),
            Condition::Sync => "not found".to_owned(),
        },
        WaitOutcome::Timeout => format!("timed out after {} waiting for {subject}{reasons}", format_duration(time)),
        WaitOutcome::Never => format!("{subject} will not be enforced on {node}{reasons}"),
        WaitOutcome::Unknown => match condition {
            Condition::Deleted(target) => format!("it is unknown whether {target} is deleted{reasons}"),
            Condition::Enforced(_) | Condition::Sync => {
                format!("it is unknown whether the agent enforces {subject}{reasons}")
            }
        },
    }
}

/// Returns the text for the reasons, with the first pending pods.
fn reasons(result: &ConditionResult) -> String {
    const SHOWN: usize = 5;
    let mut reasons: Vec<String> = result.reason.iter().cloned().collect();
    reasons.extend(result.pending.iter().take(SHOWN).map(|pending| format!("pod {}: {}", pending.pod, pending.reason)));
    if result.pending.len() > SHOWN {
        reasons.push(format!("and {}", counted(result.pending.len() - SHOWN, "more pod")));
    }
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}

#[cfg(test)]
mod tests {
    use netpol_api::Pending;

    use super::*;

    fn with_outcome(result: WaitOutcome) -> ConditionResult {
        ConditionResult {
            condition: String::new(),
            result,
            generation: Some(12),
            seconds: 0.00421,
            pods: vec!["shop/web-0".into(), "shop/web-1".into()],
            pending: Vec::new(),
            reason: None,
        }
    }

    #[test]
    fn each_result_is_one_line() {
        let condition = |text: &str| text.parse::<Condition>().expect(text);
        let met = with_outcome(WaitOutcome::Met);
        for (text, line) in [
            ("policy/shop/x", "networkpolicy shop/x enforced on n1 (generation 12, 2 pods, 4.2 ms)"),
            ("delete=policy/shop/x", "networkpolicy shop/x deleted from n1 (generation 12, 4.2 ms)"),
            ("pod/shop/a", "the policies of pod shop/a enforced on n1 (generation 12, 2 pods, 4.2 ms)"),
            ("sync", "all objects enforced on n1 (generation 12, 2 pods, 4.2 ms)"),
        ] {
            assert_eq!(success_line(&condition(text), &[("n1", &met)]), line);
        }
        let time = Duration::from_secs(30);
        let policy = condition("policy/shop/x");
        let absent = with_outcome(WaitOutcome::Absent);
        assert_eq!(failure_line(&policy, &absent, time, "n1"), "networkpolicy shop/x not found");
        let pending = |number: u8| Pending { pod: format!("shop/web-{number}"), reason: "no interface".into() };
        let late = ConditionResult { pending: (0..7).map(pending).collect(), ..with_outcome(WaitOutcome::Timeout) };
        let line = failure_line(&policy, &late, time, "n1");
        let start =
            "timed out after 30s waiting for networkpolicy shop/x: pod shop/web-0: no interface; pod shop/web-1:";
        assert!(line.starts_with(start) && line.ends_with("; and 2 more pods"), "{line}");
        let never = ConditionResult { reason: Some("the pod is finished".into()), ..with_outcome(WaitOutcome::Never) };
        assert_eq!(
            failure_line(&condition("pod/shop/a"), &never, time, "n1"),
            "the policies of pod shop/a will not be enforced on n1: the pod is finished"
        );
    }

    #[test]
    fn the_results_of_several_nodes_are_one_line_if_the_condition_is_met_on_all() {
        let condition = |text: &str| text.parse::<Condition>().expect(text);
        let met = with_outcome(WaitOutcome::Met);
        let results = [("n1", &met), ("n2", &met)];
        for (text, line) in [
            ("policy/shop/x", "networkpolicy shop/x enforced on 2 nodes (4 pods, 4.2 ms)"),
            ("delete=policy/shop/x", "networkpolicy shop/x deleted from 2 nodes (4.2 ms)"),
        ] {
            assert_eq!(success_line(&condition(text), &results), line);
        }
    }

    #[test]
    fn the_duration_of_the_first_request_is_added_if_a_condition_timed_out_in_it() {
        let result = |result, seconds| ConditionResult { seconds, ..with_outcome(result) };
        let response = |results: [ConditionResult; 2]| WaitResponse { node: "n1".to_owned(), results: results.into() };
        let first = response([result(WaitOutcome::Met, 0.004), result(WaitOutcome::Timeout, 1.0)]);
        let other_node = WaitResponse { node: "n2".to_owned(), ..first.clone() };
        let mut responses = [response([result(WaitOutcome::Met, 0.001), result(WaitOutcome::Met, 0.5)])];
        add_first_request(&mut responses, &[other_node, first]);
        assert_eq!(responses[0].results.iter().map(|result| result.seconds).collect::<Vec<_>>(), [0.004, 1.5]);
    }

    #[test]
    fn the_result_of_a_pod_is_that_of_its_node() {
        let response = |node: &str, result| WaitResponse { node: node.to_owned(), results: vec![with_outcome(result)] };
        let responses = [response("n1", WaitOutcome::Never), response("n2", WaitOutcome::Met)];
        assert_eq!(results_of_condition(&responses, 0).iter().map(|(node, _)| *node).collect::<Vec<_>>(), ["n2"]);
        assert_eq!(results_of_condition(&responses[..1], 0).len(), 1);
    }
}
