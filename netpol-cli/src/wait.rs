//! `netpol wait`: until the agent of this node enforces something.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_api::{Answer, Client, Condition, Outcome, Waited, show_duration};
use netpol_policy::text::{self, Safe};
use tokio::time::timeout;

use crate::Exit;
use crate::args::{Output, WaitOptions};

/// Who waits for longer, on a terminal, is told for what.
const QUIET: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &WaitOptions, out: &mut impl Write) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let waited = runtime.block_on(ask(options))?;
    let good = waited.results.iter().all(|answer| answer.result == Outcome::Met);
    match options.output {
        Output::Json => writeln!(out, "{}", text::json(&serde_json::to_string_pretty(&waited)?))?,
        Output::Table => {
            for (condition, answer) in options.conditions.iter().zip(&waited.results) {
                match answer.result {
                    Outcome::Met => writeln!(out, "{}", Safe(good_news(condition, answer, &waited.node)))?,
                    _ => eprintln!("error: {}", Safe(bad_news(condition, answer, options.timeout))),
                }
            }
        }
    }
    Ok(if good { Exit::Ok } else { Exit::No })
}

async fn ask(options: &WaitOptions) -> Result<Waited> {
    let client = Client::new(&options.socket);
    let waiting = client.wait(&options.conditions, options.timeout);
    tokio::pin!(waiting);
    if io::stderr().is_terminal() {
        if let Ok(waited) = timeout(QUIET, &mut waiting).await {
            return Ok(waited?);
        }
        // Only to tell; what it says of itself, the wait will say too.
        if let Ok(now) = client.wait(&options.conditions, Duration::ZERO).await {
            let open =
                options.conditions.iter().zip(&now.results).filter(|(_, answer)| answer.result == Outcome::Timeout);
            for (condition, answer) in open {
                eprintln!("waiting for {}{}", Safe(subject(condition)), Safe(because(answer)));
            }
        }
    }
    Ok(waiting.await?)
}

fn subject(condition: &Condition) -> String {
    match condition {
        Condition::Enforced(target) => target.to_string(),
        Condition::Deleted(target) => format!("{target} to be gone"),
        Condition::Sync => "everything known now".to_owned(),
    }
}

fn good_news(condition: &Condition, answer: &Answer, node: &str) -> String {
    let what = match condition {
        Condition::Enforced(target) => format!("{target} enforced on {node}"),
        Condition::Deleted(target) => format!("{target} gone from {node}"),
        Condition::Sync => format!("everything enforced on {node}"),
    };
    let pods = match (condition, answer.pods.len()) {
        (Condition::Deleted(_), _) => String::new(),
        (_, 1) => ", 1 pod".to_owned(),
        (_, count) => format!(", {count} pods"),
    };
    let generation = answer.generation.unwrap_or_default();
    format!("{what} (generation {generation}{pods}, {:.1} ms)", answer.seconds * 1e3)
}

fn bad_news(condition: &Condition, answer: &Answer, time: Duration) -> String {
    let subject = subject(condition);
    let because = because(answer);
    match answer.result {
        Outcome::Met => subject,
        Outcome::Absent => match condition {
            Condition::Enforced(target) | Condition::Deleted(target) => format!("{target} not found"),
            Condition::Sync => "not found".to_owned(),
        },
        Outcome::Timeout => format!("timed out after {} waiting for {subject}{because}", show_duration(time)),
        Outcome::Never => format!("{subject} will not be enforced here{because}"),
        Outcome::Unknown => format!("cannot tell what {subject} is now{because}"),
    }
}

/// What is missing, the first few of it.
fn because(answer: &Answer) -> String {
    const SHOWN: usize = 5;
    let mut reasons: Vec<String> = answer.reason.iter().cloned().collect();
    reasons.extend(answer.pending.iter().take(SHOWN).map(|pending| format!("pod {}: {}", pending.pod, pending.reason)));
    if answer.pending.len() > SHOWN {
        reasons.push(format!("and {} pods more", answer.pending.len() - SHOWN));
    }
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}

#[cfg(test)]
mod tests {
    use netpol_api::Pending;

    use super::*;

    fn answer(result: Outcome) -> Answer {
        Answer {
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
    fn what_came_of_it_is_one_line() {
        let condition = |text: &str| text.parse::<Condition>().expect(text);
        let met = answer(Outcome::Met);
        for (text, line) in [
            ("policy/shop/x", "networkpolicy shop/x enforced on n1 (generation 12, 2 pods, 4.2 ms)"),
            ("delete=policy/shop/x", "networkpolicy shop/x gone from n1 (generation 12, 4.2 ms)"),
            ("sync", "everything enforced on n1 (generation 12, 2 pods, 4.2 ms)"),
        ] {
            assert_eq!(good_news(&condition(text), &met, "n1"), line);
        }
        let time = Duration::from_secs(30);
        let policy = condition("policy/shop/x");
        assert_eq!(bad_news(&policy, &answer(Outcome::Absent), time), "networkpolicy shop/x not found");
        let pending = |number: u8| Pending { pod: format!("shop/web-{number}"), reason: "no interface".into() };
        let late = Answer { pending: (0..7).map(pending).collect(), ..answer(Outcome::Timeout) };
        let line = bad_news(&policy, &late, time);
        let start =
            "timed out after 30s waiting for networkpolicy shop/x: pod shop/web-0: no interface; pod shop/web-1:";
        assert!(line.starts_with(start) && line.ends_with("; and 2 pods more"), "{line}");
        let never = Answer { reason: Some("it is finished".into()), ..answer(Outcome::Never) };
        assert_eq!(
            bad_news(&condition("pod/shop/a"), &never, time),
            "pod shop/a will not be enforced here: it is finished"
        );
    }
}
