//! Checks deploy/monitoring: with promtool, and with a Prometheus server that reads the metrics of a running agent.

mod dashboard;
mod live;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use netpol_tests::prometheus::promtool;

use crate::{args, checked, kubectl, only};

fn folder() -> PathBuf {
    kubectl::deploy().join("monitoring")
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(folder().join(name)).with_context(|| format!("deploy/monitoring/{name}"))
}

/// Runs promtool in deploy/monitoring. Returns an error if promtool fails or prints a warning.
fn promtool_succeeds(arguments: &[&str], input: &str) -> Result<String> {
    let output = promtool(&folder(), arguments, input)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && stderr.trim().is_empty(), "promtool {arguments:?}: {stdout}{stderr}");
    Ok(stdout.into_owned())
}

#[test]
fn promtool_accepts_the_alerts() -> Result<()> {
    let output = promtool_succeeds(&["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"], "")?;
    let rules = read("alerts.yaml")?.matches("- alert: ").count();
    ensure!(rules > 20 && output.contains(&format!("{rules} rules found")), "{output}");
    Ok(())
}

/// Runs the tests in alerts.test.yaml with promtool.
#[test]
fn each_alert_fires_for_its_cause_only() -> Result<()> {
    promtool_succeeds(&["test", "rules", "alerts.test.yaml"], "")?;
    // These tests must be able to fail: if an alert never fires, its test fails.
    let temporary = tempfile::tempdir()?;
    let (alerts, tests) = (read("alerts.yaml")?, read("alerts.test.yaml")?);
    fs::write(
        temporary.path().join("alerts.yaml"),
        alerts.replace("expr: netpol_ready == 0", "expr: netpol_ready == 2"),
    )?;
    fs::write(temporary.path().join("alerts.test.yaml"), tests)?;
    let output = promtool(temporary.path(), ["test", "rules", "alerts.test.yaml"], "")?;
    ensure!(!output.status.success(), "the tests accept an alert that never fires");
    Ok(())
}

/// The Kustomize component `pod-monitor` contains a copy of alerts.yaml, because kustomize cannot include a file in an
/// object.
#[test]
fn the_component_has_the_alerts_of_the_rule_file() -> Result<()> {
    let path = kubectl::deploy().join("components/pod-monitor/prometheus-rule.yaml");
    let existing = fs::read_to_string(&path)?;
    let (head, _) = existing.split_once("\nspec:\n").context("prometheus-rule.yaml has no spec")?;
    let alerts = read("alerts.yaml")?;
    let groups = alerts.find("groups:").context("alerts.yaml has no groups")?;
    let indented = alerts[groups..].lines().map(|line| format!("  {line}\n"));
    let expected = format!("{head}\nspec:\n{}", indented.collect::<String>());
    if std::env::var_os("NETPOL_BLESS").is_some() {
        fs::write(&path, &expected)?;
    } else {
        ensure!(
            existing == expected,
            "prometheus-rule.yaml and alerts.yaml differ; to update prometheus-rule.yaml, run: \
             NETPOL_BLESS=1 cargo test -p netpol-tests --test deploy"
        );
    }
    let objects = checked(&kubectl::build("base", &["components/pod-monitor"])?)?;
    let rule = only("PrometheusRule", objects.prometheus_rules)?;
    let alert_count = rule.spec.groups.iter().map(|group| group.rules.len()).sum::<usize>();
    ensure!(alert_count == alerts.matches("- alert: ").count(), "{alert_count} alerts in the component");
    Ok(())
}

/// Prometheus must find the port of the metrics. The label `job` must have the value that the alerts use.
#[test]
fn the_pod_monitor_finds_the_metrics_of_the_agents() -> Result<()> {
    let objects = checked(&kubectl::build("base", &["components/pod-monitor"])?)?;
    let monitor = only("PodMonitor", objects.pod_monitors)?;
    let daemon_set = only("DaemonSet", objects.daemon_sets)?;
    let labels = pod_labels(&daemon_set);
    let selector_labels = monitor.spec.selector.match_labels.unwrap_or_default();
    ensure!(
        selector_labels.iter().all(|(key, value)| labels.get(key) == Some(value)),
        "{selector_labels:?} does not match {labels:?}"
    );
    let job = labels.get(&monitor.spec.job_label).context("the agent's pods do not have the label that sets `job`")?;
    ensure!(read("alerts.yaml")?.contains(&format!("up{{job=\"{job}\"}}")), "no alert uses job {job:?}");
    ensure!(read("scrape.yaml")?.contains(&format!("job_name: {job}\n")), "scrape.yaml has another job name");

    let endpoint = only("endpoint", monitor.spec.pod_metrics_endpoints)?;
    ensure!((&*endpoint.path, endpoint.honor_labels, &*endpoint.interval) == ("/metrics", true, "30s"), "{endpoint:?}");
    let relabeling = only("relabeling", endpoint.relabelings)?;
    ensure!(
        relabeling.source_labels == ["__meta_kubernetes_pod_node_name"] && relabeling.target_label == "node",
        "{relabeling:?}"
    );
    let container =
        &daemon_set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).context("no pod spec")?.containers[0];
    let port = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(&endpoint.port));
    let number = port.with_context(|| format!("the container has no port {:?}", endpoint.port))?.container_port;
    // The base has the option `--metrics` with another address. The component appends the option again: the last value
    // has precedence.
    let metrics_option = format!("--metrics=$(HOST_IP):{number}");
    let arguments = args(&daemon_set);
    ensure!(arguments.last() == Some(&metrics_option), "{arguments:?} does not end with {metrics_option}");
    Ok(())
}

/// Returns the labels of the agent's pods.
fn pod_labels(daemon_set: &DaemonSet) -> std::collections::BTreeMap<String, String> {
    let metadata = daemon_set.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    metadata.and_then(|metadata| metadata.labels.clone()).unwrap_or_default()
}
