//! `netpol wait`: waits until the agent on this node enforces a policy.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_api::{Client, Condition, ConditionResult, WaitOutcome, WaitResponse, format_duration};
use netpol_policy::text::{self, Safe};
use tokio::time::timeout;

use crate::Exit;
use crate::args::{Output, WaitOptions};

/// The time after which the pending conditions are printed, if standard error is a terminal.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &WaitOptions, out: &mut impl Write) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let waited = runtime.block_on(wait(options))?;
    let all_met = waited.results.iter().all(|answer| answer.result == WaitOutcome::Met);
    match options.output {
        Output::Json => writeln!(out, "{}", text::json(&serde_json::to_string_pretty(&waited)?))?,
        Output::Table => {
            for (condition, answer) in options.conditions.iter().zip(&waited.results) {
                match answer.result {
                    WaitOutcome::Met => writeln!(out, "{}", Safe(success_line(condition, answer, &waited.node)))?,
                    _ => eprintln!("error: {}", Safe(failure_line(condition, answer, options.timeout))),
                }
            }
        }
    }
    Ok(if all_met { Exit::Ok } else { Exit::Negative })
}

async fn wait(options: &WaitOptions) -> Result<WaitResponse> {
    let client = Client::new(&options.socket);
    let waiting = client.wait(&options.conditions, options.timeout);
    tokio::pin!(waiting);
    if io::stderr().is_terminal() {
        if let Ok(waited) = timeout(PROGRESS_DELAY, &mut waiting).await {
            return Ok(waited?);
        }
        // For information only: an error here is also the error of the wait.
        if let Ok(now) = client.wait(&options.conditions, Duration::ZERO).await {
            let pending =
                options.conditions.iter().zip(&now.results).filter(|(_, answer)| answer.result == WaitOutcome::Timeout);
            for (condition, answer) in pending {
                eprintln!("waiting for {}{}", Safe(subject(condition)), Safe(reasons(answer)));
            }
        }
    }
    Ok(waiting.await?)
}

fn subject(condition: &Condition) -> String {
    match condition {
        Condition::Enforced(target) => target.to_string(),
        Condition::Deleted(target) => format!("{target} to be deleted"),
        Condition::Sync => "all current objects".to_owned(),
    }
}

fn success_line(condition: &Condition, answer: &ConditionResult, node: &str) -> String {
    let what = match condition {
        Condition::Enforced(target) => format!("{target} enforced on {node}"),
        Condition::Deleted(target) => format!("{target} deleted from {node}"),
        Condition::Sync => format!("all objects enforced on {node}"),
    };
    let pods = match (condition, answer.pods.len()) {
        (Condition::Deleted(_), _) => String::new(),
        (_, 1) => ", 1 pod".to_owned(),
        (_, count) => format!(", {count} pods"),
    };
    let generation = answer.generation.unwrap_or_default();
    format!("{what} (generation {generation}{pods}, {:.1} ms)", answer.seconds * 1e3)
}

fn failure_line(condition: &Condition, answer: &ConditionResult, time: Duration) -> String {
    let subject = subject(condition);
    let reasons = reasons(answer);
    match answer.result {
        WaitOutcome::Met => subject,
        WaitOutcome::Absent => match condition {
            Condition::Enforced(target) | Condition::Deleted(target) => format!("{target} not found"),
            Condition::Sync => "not found".to_owned(),
        },
        WaitOutcome::Timeout => format!("timed out after {} waiting for {subject}{reasons}", format_duration(time)),
        WaitOutcome::Never => format!("{subject} will not be enforced on this node{reasons}"),
        WaitOutcome::Unknown => format!("the state of {subject} is unknown{reasons}"),
    }
}

/// The reasons, with the first pending pods.
fn reasons(answer: &ConditionResult) -> String {
    const SHOWN: usize = 5;
    let mut reasons: Vec<String> = answer.reason.iter().cloned().collect();
    reasons.extend(answer.pending.iter().take(SHOWN).map(|pending| format!("pod {}: {}", pending.pod, pending.reason)));
    if answer.pending.len() > SHOWN {
        reasons.push(format!("and {} more pods", answer.pending.len() - SHOWN));
    }
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}

#[cfg(test)]
mod tests {
    use netpol_api::Pending;

    use super::*;

    fn answer(result: WaitOutcome) -> ConditionResult {
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
        let met = answer(WaitOutcome::Met);
        for (text, line) in [
            ("policy/shop/x", "networkpolicy shop/x enforced on n1 (generation 12, 2 pods, 4.2 ms)"),
            ("delete=policy/shop/x", "networkpolicy shop/x deleted from n1 (generation 12, 4.2 ms)"),
            ("sync", "all objects enforced on n1 (generation 12, 2 pods, 4.2 ms)"),
        ] {
            assert_eq!(success_line(&condition(text), &met, "n1"), line);
        }
        let time = Duration::from_secs(30);
        let policy = condition("policy/shop/x");
        assert_eq!(failure_line(&policy, &answer(WaitOutcome::Absent), time), "networkpolicy shop/x not found");
        let pending = |number: u8| Pending { pod: format!("shop/web-{number}"), reason: "no interface".into() };
        let late = ConditionResult { pending: (0..7).map(pending).collect(), ..answer(WaitOutcome::Timeout) };
        let line = failure_line(&policy, &late, time);
        let start =
            "timed out after 30s waiting for networkpolicy shop/x: pod shop/web-0: no interface; pod shop/web-1:";
        assert!(line.starts_with(start) && line.ends_with("; and 2 more pods"), "{line}");
        let never = ConditionResult { reason: Some("the pod is finished".into()), ..answer(WaitOutcome::Never) };
        assert_eq!(
            failure_line(&condition("pod/shop/a"), &never, time),
            "pod shop/a will not be enforced on this node: the pod is finished"
        );
    }
}
