//! `netpol suspend` stops enforcement for a limited time, and `netpol resume` ends a suspension. They set and remove
//! annotations of a Namespace.

mod cluster;
mod remaining;
mod target;

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use jiff::{SignedDuration, Timestamp, Unit};
use netpol_policy::text::Safe;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Exit;
use crate::args::{Output, SuspendOptions, SuspensionOptions};
use crate::message::message;
use crate::output::print_json;
use crate::remote::{AGENT_LABEL, runtime};

use cluster::{Before, Cluster};
use remaining::{Remaining, print_remaining};
use target::{REASON, Target};

/// The longest suspension that agents accept.
const MAX_DURATION: Duration = Duration::from_hours(24);

/// Parses the duration of a suspension.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        _ => None,
    };
    let seconds = seconds.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit));
    match seconds.map(Duration::from_secs) {
        Some(duration) if duration.is_zero() => {
            Err(format!("`{text}` is not a time in the future; to end a suspension, use resume"))
        }
        Some(duration) if duration <= MAX_DURATION => Ok(duration),
        Some(_) => Err(format!("`{text}` is too long; the maximum is 24h")),
        None => Err(format!("`{text}` is not a duration; use a number and a unit, such as 30m or 2h")),
    }
}

/// Parses a reason, which must have one line.
pub(crate) fn reason(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("the reason is empty".to_owned());
    }
    if text.contains(char::is_control) {
        return Err("the reason must be one line without control characters".to_owned());
    }
    Ok(text.to_owned())
}

pub(crate) fn suspend(options: &SuspendOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(suspend_until(options, out))
}

pub(crate) fn resume(options: &SuspensionOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(resume_now(options, out))
}

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Change<'a> {
    /// `namespace` or `cluster`.
    scope: &'static str,
    /// The Namespace with the annotations.
    namespace: &'a str,
    /// The end of the suspension; `None` if enforcement is resumed.
    until: Option<&'a str>,
    reason: Option<&'a str>,
    /// The reason that was replaced, if it belongs to another suspension that is in effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced_reason: Option<&'a str>,
    /// The user name, as authenticated by the API server.
    user: Option<&'a str>,
    time: &'a str,
    /// The kubectl command that makes the same change.
    command: &'a str,
    /// The command that reverses the change.
    reverse: &'a str,
    /// Other suspensions that are still in effect.
    #[serde(flatten)]
    remaining: Option<&'a Remaining>,
}

async fn suspend_until(options: &SuspendOptions, out: &mut impl Write) -> Result<Exit> {
    let SuspendOptions { suspension, duration, reason } = options;
    let (cluster, agent_namespace) = (Cluster::open(&suspension.api).await?, suspension.agent_namespace.as_str());
    let target = Target::new(&suspension.scope, agent_namespace);
    // The annotation that suspends the cluster has an effect only in the Namespace of the agents.
    let has_agents = if target.is_cluster() { cluster.has_agents(agent_namespace).await } else { Ok(true) };
    let before = read(&cluster, &target).await?;
    match has_agents {
        Ok(true) => {}
        Ok(false) => bail!(no_agents(agent_namespace)),
        Err(error) => {
            message!("netpol: cannot check that agents run in namespace {}: {}", Safe(agent_namespace), Safe(error));
        }
    }
    let now = server_time(&before)?;
    let until = (now + SignedDuration::try_from(*duration)?).to_string();
    let replaced = replaced_reason(&target, &before, now, reason);
    let annotations = json!({target.until_annotation: until, REASON: reason});
    patch(&cluster, &target, &annotations).await?;
    if suspension.output == Output::Table {
        writeln!(out, "enforcement of {} is suspended until {until}", target.title())?;
        out.flush()?;
    }
    let user = cluster.user().await;
    let kubectl_options = &cluster.kube.kubectl_options;
    let change = Change {
        scope: target.scope(),
        namespace: &target.namespace,
        until: Some(&until),
        reason: Some(reason),
        replaced_reason: replaced,
        user: user.as_deref(),
        time: &now.to_string(),
        command: &target.kubectl_set_command(kubectl_options, &until, reason),
        reverse: &target.resume_command(kubectl_options, agent_namespace),
        remaining: None,
    };
    if suspension.output == Output::Json {
        print_json(out, &change)?;
        return Ok(Exit::Ok);
    }
    let by = change.user.unwrap_or("this user");
    writeln!(out, "suspended by {} at {}: {}", Safe(by), change.time, Safe(reason))?;
    if let Some(replaced) = replaced {
        writeln!(out, "replaces the reason of another suspension: {}", Safe(replaced))?;
    }
    writeln!(out, "same as:  {}", Safe(change.command))?;
    writeln!(out, "to end:   {}", Safe(change.reverse))?;
    Ok(Exit::Ok)
}

async fn resume_now(options: &SuspensionOptions, out: &mut impl Write) -> Result<Exit> {
    let (cluster, agent_namespace) = (Cluster::open(&options.api).await?, options.agent_namespace.as_str());
    let target = Target::new(&options.scope, agent_namespace);
    let (before, has_agents, others) = tokio::join!(
        read(&cluster, &target),
        cluster.has_agents(agent_namespace),
        remaining::read(&cluster, &target, agent_namespace)
    );
    let before = before?;
    if target.is_cluster() && has_agents == Ok(false) && !before.annotations.contains_key(target.until_annotation) {
        bail!(no_agents(agent_namespace));
    }
    let now = server_time(&before)?;
    let remaining = Remaining::new(others, &has_agents, now, agent_namespace);
    // The Namespace of the agents can have a second suspension, which uses the same annotation for its reason.
    let keeps_reason = is_active(&before, target.other_until_annotation(), now);
    let mut annotations = json!({target.until_annotation: Value::Null});
    if !keeps_reason {
        annotations[REASON] = Value::Null;
    }
    patch(&cluster, &target, &annotations).await?;
    if options.output == Output::Table {
        print_resumed(out, &target, &before, now, &remaining)?;
        print_remaining(out, &remaining, &cluster.kube.kubectl_options, agent_namespace)?;
        out.flush()?;
    }
    let user = cluster.user().await;
    let kubectl_options = &cluster.kube.kubectl_options;
    let change = Change {
        scope: target.scope(),
        namespace: &target.namespace,
        until: None,
        reason: None,
        replaced_reason: None,
        user: user.as_deref(),
        time: &now.to_string(),
        command: &target.kubectl_remove_command(kubectl_options, keeps_reason),
        reverse: &target.suspend_command(kubectl_options, agent_namespace),
        remaining: Some(&remaining),
    };
    if options.output == Output::Json {
        print_json(out, &change)?;
        return Ok(Exit::Ok);
    }
    writeln!(out, "changed by {} at {}", Safe(change.user.unwrap_or("this user")), change.time)?;
    writeln!(out, "same as:     {}", Safe(change.command))?;
    writeln!(out, "to suspend:  {}", Safe(change.reverse))?;
    Ok(Exit::Ok)
}

/// Prints whether the removal of the annotation has ended a suspension.
fn print_resumed(
    out: &mut impl Write,
    target: &Target,
    before: &Before,
    now: Timestamp,
    remaining: &Remaining,
) -> Result<()> {
    let title = target.title();
    match before.annotations.get(target.until_annotation) {
        None => writeln!(out, "enforcement of {title} was not suspended")?,
        Some(until) if !is_active(before, target.until_annotation, now) => {
            writeln!(
                out,
                "enforcement of {title} was not suspended: removed an annotation with the time {}",
                Safe(until)
            )?;
        }
        // The suspension of the cluster is still in effect, so the policies of this namespace are not enforced yet.
        Some(until) if !target.is_cluster() && remaining.applies() => {
            writeln!(out, "the suspension of {title} is removed; its end was {}", Safe(until))?;
        }
        Some(until) => writeln!(out, "enforcement of {title} is resumed; it was suspended until {}", Safe(until))?,
    }
    Ok(())
}

async fn read(cluster: &Cluster, target: &Target) -> Result<Before> {
    let before = cluster.read(&target.namespace).await;
    before.map_err(|error| anyhow!("cannot change namespace {}: {error}", target.namespace))
}

async fn patch(cluster: &Cluster, target: &Target, annotations: &Value) -> Result<()> {
    let changed = cluster.patch(&target.namespace, annotations).await;
    let check = format!("check it with `kubectl get namespace {} -o yaml`", crate::shell::quoted(&target.namespace));
    changed.map_err(|error| anyhow!("cannot change namespace {}: {error}; {check}", target.namespace))
}

/// Returns the time of the API server, because the clock of this machine may be wrong.
fn server_time(before: &Before) -> Result<Timestamp> {
    let now = before.time.unwrap_or_else(|| {
        message!("netpol: the API server's response has no time; the clock of this machine is used");
        Timestamp::now()
    });
    Ok(now.round(Unit::Second)?)
}

/// Returns whether a suspension is in effect: the annotation with its end has a time in the future.
fn is_active(before: &Before, annotation: &str, now: Timestamp) -> bool {
    let until = before.annotations.get(annotation).and_then(|until| until.parse::<Timestamp>().ok());
    until.is_some_and(|until| until > now)
}

/// Returns the reason in the Namespace's annotation, if `reason` replaces it and it belongs to another suspension that
/// is in effect. The Namespace of the agents can have two suspensions: its own and that of the cluster. Both use the
/// same annotation for the reason.
fn replaced_reason<'a>(target: &Target, before: &'a Before, now: Timestamp, reason: &str) -> Option<&'a str> {
    let other = before.annotations.get(REASON).filter(|other| *other != reason)?;
    is_active(before, target.other_until_annotation(), now).then_some(other)
}

fn no_agents(namespace: &str) -> String {
    format!(
        "found no agent: namespace {namespace} has no pod with the label {AGENT_LABEL}, so a suspension of the cluster \
         has no effect there; set --agent-namespace"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_at_most_a_day() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("24h", 86_400), ("1440m", 86_400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for (text, part) in [("0m", "use resume"), ("25h", "24h"), ("1d", "30m or 2h"), ("", "30m"), ("-1h", "30m")] {
            let error = duration(text).expect_err(text);
            assert!(error.contains(part), "{error}");
        }
    }
}
