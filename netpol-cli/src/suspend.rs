//! `netpol suspend` and `netpol resume`: stop enforcement for a limited time, with annotations of a Namespace.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, anyhow};
use jiff::{SignedDuration, Timestamp, Unit};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use netpol_policy::text::Safe;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Exit;
use crate::args::{KubeOptions, Output, ResumeOptions, SuspendOptions, SuspendScope};
use crate::output::print_json;
use crate::remote::{Kube, explain_error, runtime};

/// The end of a suspension of the Namespace with this annotation.
const UNTIL: &str = "netpol.io/suspended-until";
/// The end of a suspension of the cluster, on the agents' Namespace.
const CLUSTER_UNTIL: &str = "netpol.io/suspend-cluster-until";
/// Why enforcement is suspended.
const REASON: &str = "netpol.io/suspended-reason";
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
        Some(duration) if duration.is_zero() => Err(format!("`{text}` is no time; to end a suspension, use resume")),
        Some(duration) if duration <= MAX_DURATION => Ok(duration),
        Some(_) => Err(format!("`{text}` is too long; the maximum is 24h")),
        None => Err(format!("`{text}` is not a duration; use a number and a unit, such as 30m or 2h")),
    }
}

pub(crate) fn suspend(options: &SuspendOptions, out: &mut impl Write) -> Result<Exit> {
    let until = Timestamp::now() + SignedDuration::try_from(options.duration)?;
    let until = until.round(Unit::Second)?.to_string();
    let target = Target::new(&options.scope, &options.agent_namespace);
    let annotations = json!({target.until: until, REASON: options.reason});
    let done = runtime()?.block_on(annotate(&options.kube, &target, &annotations))?;
    let change = Change {
        scope: target.scope(),
        namespace: &target.namespace,
        until: Some(&until),
        reason: Some(&options.reason),
        user: done.user.as_deref(),
        time: &Timestamp::now().round(Unit::Second)?.to_string(),
        command: &target.kubectl(&done.kubectl_options, Some((&until, &options.reason))),
        reverse: &target.resume(&done.kubectl_options, &options.agent_namespace),
    };
    if options.output == Output::Json {
        print_json(out, &change)?;
        return Ok(Exit::Ok);
    }
    let by = change.user.unwrap_or("this user");
    writeln!(out, "enforcement of {} is suspended until {until}", target.title())?;
    writeln!(out, "by {} at {}: {}", Safe(by), change.time, Safe(&options.reason))?;
    writeln!(out, "same as:  {}", Safe(change.command))?;
    writeln!(out, "to end:   {}", Safe(change.reverse))?;
    Ok(Exit::Ok)
}

pub(crate) fn resume(options: &ResumeOptions, out: &mut impl Write) -> Result<Exit> {
    let target = Target::new(&options.scope, &options.agent_namespace);
    let annotations = json!({target.until: Value::Null, REASON: Value::Null});
    let done = runtime()?.block_on(annotate(&options.kube, &target, &annotations))?;
    let change = Change {
        scope: target.scope(),
        namespace: &target.namespace,
        until: None,
        reason: None,
        user: done.user.as_deref(),
        time: &Timestamp::now().round(Unit::Second)?.to_string(),
        command: &target.kubectl(&done.kubectl_options, None),
        reverse: &target.suspend(&done.kubectl_options, &options.agent_namespace),
    };
    if options.output == Output::Json {
        print_json(out, &change)?;
        return Ok(Exit::Ok);
    }
    match &done.before {
        Some(until) => {
            let until = Safe(until);
            writeln!(out, "enforcement of {} is resumed; it was suspended until {until}", target.title())?;
        }
        None => writeln!(out, "enforcement of {} was not suspended", target.title())?,
    }
    writeln!(out, "by {} at {}", Safe(change.user.unwrap_or("this user")), change.time)?;
    writeln!(out, "same as:     {}", Safe(change.command))?;
    writeln!(out, "to suspend:  {}", Safe(change.reverse))?;
    Ok(Exit::Ok)
}

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Change<'a> {
    /// `namespace` or `cluster`.
    scope: &'static str,
    /// The Namespace with the annotations.
    namespace: &'a str,
    /// The end; none if enforcement is resumed.
    until: Option<&'a str>,
    reason: Option<&'a str>,
    /// The user, as the API server knows it.
    user: Option<&'a str>,
    time: &'a str,
    /// The command of kubectl that does the same.
    command: &'a str,
    /// The command that does the opposite.
    reverse: &'a str,
}

/// The Namespace that has the annotations.
struct Target {
    namespace: String,
    until: &'static str,
}

impl Target {
    fn new(scope: &SuspendScope, agent_namespace: &str) -> Self {
        match &scope.namespace {
            Some(namespace) => Self { namespace: namespace.clone(), until: UNTIL },
            None => Self { namespace: agent_namespace.to_owned(), until: CLUSTER_UNTIL },
        }
    }

    fn is_cluster(&self) -> bool {
        self.until == CLUSTER_UNTIL
    }

    fn scope(&self) -> &'static str {
        if self.is_cluster() { "cluster" } else { "namespace" }
    }

    fn title(&self) -> String {
        if self.is_cluster() { "the cluster".to_owned() } else { format!("namespace {}", Safe(&self.namespace)) }
    }

    /// The command of kubectl that sets or removes the annotations.
    fn kubectl(&self, options: &str, set: Option<(&str, &str)>) -> String {
        let (namespace, until) = (&self.namespace, self.until);
        match set {
            Some((time, reason)) => {
                let reason = quoted(reason);
                format!("kubectl {options}annotate namespace {namespace} {until}={time} {REASON}={reason} --overwrite")
            }
            None => format!("kubectl {options}annotate namespace {namespace} {until}- {REASON}-"),
        }
    }

    fn resume(&self, options: &str, agent_namespace: &str) -> String {
        format!("netpol resume {options}{}", self.arguments(agent_namespace))
    }

    fn suspend(&self, options: &str, agent_namespace: &str) -> String {
        format!("netpol suspend {options}{} --for 30m --reason TEXT", self.arguments(agent_namespace))
    }

    fn arguments(&self, agent_namespace: &str) -> String {
        match (self.is_cluster(), agent_namespace == crate::args::AGENT_NAMESPACE) {
            (false, _) => format!("-n {}", self.namespace),
            (true, true) => "--cluster".to_owned(),
            (true, false) => format!("--cluster --agent-namespace {agent_namespace}"),
        }
    }
}

/// Quotes a text for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The result of a change.
struct Done {
    user: Option<String>,
    kubectl_options: String,
    /// The end of the suspension before the change.
    before: Option<String>,
}

async fn annotate(options: &KubeOptions, target: &Target, annotations: &Value) -> Result<Done> {
    let kube = Kube::open(options).await?;
    let api: Api<Namespace> = Api::all(kube.client.clone());
    let failed = |error: kube::Error| {
        let next = match &error {
            kube::Error::Api(status) if status.code == 403 => "; it needs the verbs get and patch on this Namespace",
            _ => "",
        };
        anyhow!("cannot change namespace {}: {}{next}", target.namespace, explain_error(&error))
    };
    let before = api.get(&target.namespace).await.map_err(failed)?;
    let before = before.metadata.annotations.and_then(|mut annotations| annotations.remove(target.until));
    let patch = json!({"metadata": {"annotations": annotations}});
    let parameters = PatchParams { field_manager: Some("netpol".to_owned()), ..PatchParams::default() };
    api.patch(&target.namespace, &parameters, &Patch::Merge(patch)).await.map_err(failed)?;
    Ok(Done { user: user(&kube).await, kubectl_options: kube.kubectl_options, before })
}

/// Returns the name under which the API server knows the caller. API servers before Kubernetes 1.28 do not report it.
async fn user(kube: &Kube) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(kube.client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.ok()?;
    review.status?.user_info?.username
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

    #[test]
    fn commands_can_be_pasted() {
        let shop = Target { namespace: "shop".to_owned(), until: UNTIL };
        let set = shop.kubectl("--context staging ", Some(("2026-11-29T12:30:00Z", "it's down; rm -rf")));
        assert_eq!(
            set,
            "kubectl --context staging annotate namespace shop netpol.io/suspended-until=2026-11-29T12:30:00Z \
             netpol.io/suspended-reason='it'\\''s down; rm -rf' --overwrite"
        );
        let cluster = Target { namespace: "netpol".to_owned(), until: CLUSTER_UNTIL };
        assert_eq!(cluster.resume("", "netpol"), "netpol resume --cluster --agent-namespace netpol");
        assert_eq!(
            cluster.kubectl("", None),
            "kubectl annotate namespace netpol netpol.io/suspend-cluster-until- netpol.io/suspended-reason-"
        );
    }
}
