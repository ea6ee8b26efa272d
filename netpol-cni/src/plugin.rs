//! The commands of the CNI specification.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use netpol_api::{PodStart, PodStop};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::agent::post;
use crate::environment::PodIdentity;
use crate::error::version_of;
use crate::hold::hold;
use crate::prev_result::addresses;
use crate::{CniError, Environment, ErrorCode, LATEST_CNI_VERSION, PLUGIN, Settings, VERSIONS};

/// Time for the agent's response to the report that a pod stops. Without this report, the agent removes the pod's
/// addresses when the pod is deleted from the API.
const STOP_TIME: Duration = Duration::from_secs(1);

/// The configuration on stdin.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration<'a> {
    cni_version: Option<String>,
    #[serde(borrow)]
    prev_result: Option<&'a RawValue>,
}

/// Runs a command and returns what it prints on stdout.
///
/// # Errors
/// If the call is invalid, or the pod must not start yet.
pub fn run(environment: &Environment, input: &str, log: &mut dyn FnMut(&dyn Display)) -> Result<String, CniError> {
    match environment.command.as_str() {
        "ADD" => {
            require(environment, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
            add(environment, input, log)
        }
        "DEL" => {
            require(environment, &["CNI_CONTAINERID", "CNI_IFNAME"])?;
            parse_configuration(input)?;
            delete(environment, input, log);
            Ok(String::new())
        }
        // CHECK and GC have nothing to do: the plugin creates nothing, and the agent itself checks enforcement and
        // removes the state of deleted pods. STATUS succeeds even if the agent is unavailable. Otherwise, containerd
        // would report the node's network as not ready, and after a few minutes, Kubernetes would evict all pods of the
        // node.
        "CHECK" | "GC" | "STATUS" => parse_configuration(input).map(|_| String::new()),
        "VERSION" => {
            let version = version_of(input).unwrap_or_else(|| LATEST_CNI_VERSION.to_owned());
            Ok(json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string())
        }
        "" => Err(CniError::new(
            ErrorCode::InvalidEnvironment,
            format!(
                "CNI_COMMAND is not set: {PLUGIN} {} is a CNI plugin, which container runtimes call",
                env!("CARGO_PKG_VERSION")
            ),
        )),
        other => {
            Err(CniError::new(ErrorCode::InvalidEnvironment, format!("CNI_COMMAND has the unknown value {other:?}")))
        }
    }
}

fn add(environment: &Environment, input: &str, log: &mut dyn FnMut(&dyn Display)) -> Result<String, CniError> {
    let Some(prev_result) = parse_configuration(input)?.prev_result else {
        let message = format!("prevResult is missing: add {PLUGIN} after the plugin that connects pods");
        return Err(CniError::new(ErrorCode::InvalidConfiguration, message));
    };
    // The result must not change: "If a plugin makes no changes … it must output a result equivalent to the provided
    // prevResult".
    let result = prev_result.get().to_owned();
    let settings =
        Settings::parse(input).map_err(|error| CniError::new(ErrorCode::InvalidConfiguration, error.to_string()))?;
    let Some(pod) = environment.pod() else { return Ok(result) };
    let addresses = addresses(&result)
        .map_err(|error| CniError::new(ErrorCode::Decode, format!("cannot parse prevResult: {error}")))?;
    if addresses.is_empty() {
        log(&format_args!("pod {}/{} has no address; it starts without enforcement", pod.namespace, pod.name));
        return Ok(result);
    }
    hold(&settings, pod_start(pod, addresses), log)?;
    Ok(result)
}

fn pod_start(pod: PodIdentity, addresses: Vec<IpAddr>) -> PodStart {
    let PodIdentity { sandbox, namespace, name, uid } = pod;
    PodStart { container_id: sandbox, namespace, name, uid, addresses, timeout_ms: 0 }
}

/// Reports to the agent that a pod stops. Errors are only logged: if the command DEL failed, the runtime could not
/// remove the pod.
fn delete(environment: &Environment, input: &str, log: &mut dyn FnMut(&dyn Display)) {
    let Some(PodIdentity { sandbox, namespace, name, .. }) = environment.pod() else { return };
    let settings = Settings::parse(input).unwrap_or_else(|error| {
        log(&format_args!("using default settings: {error}"));
        Settings::default()
    });
    let stop = PodStop { container_id: sandbox, namespace, name };
    let result = serde_json::to_string(&stop)
        .map_err(|error| error.to_string())
        .and_then(|body| post(&settings.socket, "/v1/pods/stop", &body, STOP_TIME).map_err(|error| error.to_string()));
    if let Err(error) = result {
        log(&format_args!("the stop of pod {}/{} was not reported: {error}", stop.namespace, stop.name));
    }
}

/// Parses the configuration and checks its version.
fn parse_configuration(input: &str) -> Result<Configuration<'_>, CniError> {
    let configuration: Configuration = serde_json::from_str(input)
        .map_err(|error| CniError::new(ErrorCode::Decode, format!("cannot parse the configuration: {error}")))?;
    // A configuration without a version has version 0.1.0. This version has no lists of plugins, so it is not in
    // `VERSIONS`.
    let version = configuration.cni_version.as_deref().filter(|version| !version.is_empty()).unwrap_or("0.1.0");
    if !VERSIONS.contains(&version) {
        let message = format!("cniVersion {version} is not supported; supported: {}", VERSIONS.join(", "));
        return Err(CniError::new(ErrorCode::IncompatibleVersion, message));
    }
    Ok(configuration)
}

fn require(environment: &Environment, names: &[&str]) -> Result<(), CniError> {
    let Environment { container_id, netns, interface, .. } = environment;
    let values = [("CNI_CONTAINERID", container_id), ("CNI_NETNS", netns), ("CNI_IFNAME", interface)];
    let missing: Vec<_> = values
        .into_iter()
        .filter(|(name, value)| names.contains(name) && value.is_empty())
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(CniError::new(ErrorCode::InvalidEnvironment, format!("not set: {}", missing.join(", "))))
}
