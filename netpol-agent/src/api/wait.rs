//! Waits until this node enforces something.

use std::time::{Duration, Instant};

use futures::future::join_all;
use netpol_api::{Answer, Condition, Kind, Outcome, Target, Waited, parse_duration};
use netpol_policy::model::{ObjectKey, PodKey, PolicyKey};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::desk::{Desk, Question};
use crate::reconcile::{Check, Finding, Standing};
use crate::source::{Inquiry, Revision, Subject, SubjectState};

/// More conditions than this belong in several requests.
const CONDITIONS: usize = 64;
/// Where no time is named.
const DEFAULT: Duration = Duration::from_secs(30);
/// The source may take this long to say what there is, also for who does not want to wait.
const INQUIRY: Duration = Duration::from_secs(3);

/// The loop answers within this long, unless the policies that are asked about are being evaluated.
const AT_LEAST: Duration = Duration::from_millis(100);

/// What is waited for, and how long.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    conditions: Vec<Condition>,
    time: Duration,
}

/// Reads `for=policy/shop/web&timeout=30s`.
pub(super) fn parse(query: &str) -> Result<Asked, String> {
    let mut asked = Asked { conditions: Vec::new(), time: DEFAULT };
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("for", text)) => {
                let text = text.replace("%2F", "/").replace("%2f", "/").replace("%3D", "=").replace("%3d", "=");
                asked.conditions.push(text.parse().map_err(|error| format!("for: {error}"))?);
            }
            Some(("timeout", text)) => {
                asked.time = parse_duration(text).map_err(|error| format!("timeout: {error}"))?;
            }
            _ => return Err(format!("`{part}` is not understood; there are for=CONDITION and timeout=DURATION")),
        }
    }
    match asked.conditions.len() {
        0 => Err("nothing to wait for; add for=policy/NAMESPACE/NAME".to_owned()),
        1..=CONDITIONS => Ok(asked),
        _ => Err(format!("more than {CONDITIONS} conditions; ask several times")),
    }
}

/// Waits for all at the same time; what has come to hold is not looked at again. `None`: the agent ends.
pub(super) async fn wait(asked: &Asked, desk: &Desk) -> Option<Waited> {
    let begun = Instant::now();
    let waiting = asked.conditions.iter().map(|condition| wait_for(condition, begun, begun + asked.time, desk));
    let results: Option<Vec<_>> = join_all(waiting).await.into_iter().collect();
    Some(Waited { node: desk.about.node.clone(), results: results? })
}

async fn wait_for(condition: &Condition, begun: Instant, until: Instant, desk: &Desk) -> Option<Answer> {
    let mut answer = Answer {
        condition: condition.to_string(),
        result: Outcome::Timeout,
        generation: None,
        seconds: 0.0,
        pods: Vec::new(),
        pending: Vec::new(),
        reason: None,
    };
    match inquire(condition, until, desk).await {
        Ok(known) if !known.exists && matches!(condition, Condition::Enforced(_)) => {
            answer.generation = Some(known.revision.0);
            answer.result = Outcome::Absent;
        }
        Ok(known) => {
            let finding = watch(condition, known.revision, until, desk).await?;
            answer.generation = Some(finding.enforced.0);
            (answer.result, answer.reason) = match finding.standing {
                Standing::Holds => (Outcome::Met, None),
                Standing::Absent => (Outcome::Absent, None),
                Standing::Not(reason) => (Outcome::Timeout, reason),
                Standing::Never(reason) => (Outcome::Never, Some(reason)),
            };
            (answer.pods, answer.pending) = (finding.pods, finding.pending);
        }
        Err(reason) => {
            answer.result = Outcome::Unknown;
            answer.reason = Some(reason);
        }
    }
    answer.seconds = begun.elapsed().as_secs_f64();
    Some(answer)
}

/// What the source knows now.
async fn inquire(condition: &Condition, until: Instant, desk: &Desk) -> Result<SubjectState, String> {
    let subject = match condition {
        Condition::Enforced(target) | Condition::Deleted(target) => Subject::Object(key(target)),
        Condition::Sync => Subject::Everything,
    };
    let (answer, answered) = oneshot::channel();
    let gone = || "the source has ended; what it said last stays in force".to_owned();
    let asking = async {
        desk.inquiries.send(Inquiry { subject, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    };
    let patience = until.saturating_duration_since(Instant::now()).max(INQUIRY);
    timeout(patience, asking).await.unwrap_or_else(|_| {
        Err("the source did not say in time what there is now: it may be away, or behind".to_owned())
    })
}

/// Asks the loop again after each of its changes, until the condition holds, never will, or the time is over.
async fn watch(condition: &Condition, revision: Revision, until: Instant, desk: &Desk) -> Option<Finding> {
    let check = Check { condition: condition.clone(), revision };
    let mut progress = desk.progress.clone();
    loop {
        progress.mark_unchanged();
        // While changes are being evaluated there is no answer yet.
        let left = until.saturating_duration_since(Instant::now());
        let asking = desk.ask(|answer| Question::Check(check.clone(), answer));
        let Ok(finding) = timeout(left.max(AT_LEAST), asking).await else {
            return Some(Finding::unknown("changes are still being evaluated"));
        };
        let finding = finding?;
        let left = until.saturating_duration_since(Instant::now());
        if !matches!(finding.standing, Standing::Not(_)) || left.is_zero() {
            return Some(finding);
        }
        // An error is the loop's end, which the next question finds out.
        let _ = timeout(left, progress.changed()).await;
    }
}

fn key(target: &Target) -> ObjectKey {
    let (namespace, name) = (target.namespace.as_str(), target.name.as_str());
    match target.kind {
        Kind::Policy => ObjectKey::Policy(PolicyKey::new(namespace, name)),
        Kind::Pod => ObjectKey::Pod(PodKey::new(namespace, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read() {
        let asked = parse("for=policy/shop/web&timeout=2s&for=delete=pod/shop/a&for=delete%3Dpolicy%2Fshop%2Fb")
            .expect("it is one");
        let texts: Vec<_> = asked.conditions.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["policy/shop/web", "delete=pod/shop/a", "delete=policy/shop/b"]);
        assert_eq!(asked.time, Duration::from_secs(2));
        assert_eq!(parse("for=sync").expect("it is one").time, DEFAULT);
    }

    #[test]
    fn queries_that_are_none_say_why() {
        for (query, words) in [
            ("", "nothing to wait for"),
            ("timeout=1s", "nothing to wait for"),
            ("for=shop", "for: `shop`"),
            ("for=sync&timeout=1", "timeout: `1`"),
            ("for=sync&watch=1", "`watch=1` is not understood"),
            ("for", "`for` is not understood"),
        ] {
            let error = parse(query).expect_err(query);
            assert!(error.contains(words), "{error}");
        }
        assert!(parse(&"for=sync&".repeat(CONDITIONS + 1)).is_err());
    }
}
