//! A Prometheus server reads the metrics of a running agent, with the configuration in deploy/monitoring/scrape.yaml.
//! Then the queries of the Grafana dashboard must have data, and the alerts must be evaluated without errors.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netpol_tests::prometheus::Prometheus;
use netpol_tests::{AgentOptions, Cluster, Lab, deny_all};
use serde_json::Value;

use super::dashboard::Dashboard;
use super::{folder, promtool_succeeds, read};

/// Where the agent serves metrics.
const ADDRESS: &str = "127.0.0.1:9464";

/// Returns the configuration of the Prometheus server: scrape.yaml, in which the agent's address replaces the discovery
/// of pods (`kubernetes_sd_configs`), because there is no API server.
fn configuration() -> Result<String> {
    let text = read("scrape.yaml")?;
    let (before, rest) = text.split_once("    kubernetes_sd_configs:\n").context("scrape.yaml has no discovery")?;
    let (_, relabeling) = rest.split_once("    relabel_configs:\n").context("scrape.yaml has no relabeling")?;
    // The Prometheus operator adds the labels `namespace` and `pod`, with the namespace and name of the agent's pod.
    let labels = "{__meta_kubernetes_pod_container_port_name: metrics, __meta_kubernetes_pod_node_name: node-1, \
                  namespace: kube-system, pod: netpol-agent-1}";
    Ok(format!(
        "global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}\nrule_files: [{}/alerts.yaml]\n{before}    \
         static_configs:\n      - targets: [\"{ADDRESS}\"]\n        labels: {labels}\n    relabel_configs:\n{relabeling}",
        folder().display()
    ))
}

/// Returns the agent's metrics page.
fn page(lab: &Lab) -> Result<String> {
    lab.cluster.host("node-1").netns().run(|| {
        let mut stream = TcpStream::connect(ADDRESS).context("connecting to the agent")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response).context("reading the agent's response")?;
        let (_, body) = response.split_once("\r\n\r\n").context("the response has no end of the header")?;
        Ok(body.to_owned())
    })
}

/// Returns a query of the dashboard with values for its variables, as Grafana sends it.
fn without_variables(query: &str) -> String {
    query.replace("$node", "node-1").replace("$namespace", ".*").replace("$__rate_interval", "1m")
}

/// Returns whether a query must have a result. This is so if the agent's metrics page has samples of all metrics in the
/// query, and the query does not end with the condition `> 0`, which can be false.
fn must_have_result(query: &str, page: &str) -> bool {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let mut metrics = words.filter(|word| word.starts_with("netpol_"));
    !query.ends_with("> 0") && metrics.all(|metric| page.contains(&format!("\n{metric}")))
}

fn wait_until(condition: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !holds()? {
        ensure!(begin.elapsed() < Duration::from_secs(20), "not within 20 s: {condition}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Starts an agent, which then denies a connection. The agent exports flows to files in this directory.
fn lab(directory: &Path) -> Result<Lab> {
    let cluster = Cluster::builder().pods(&[("shop/client", "app=client"), ("shop/server", "app=server")]);
    let export = format!("file:{}", directory.join("flows").display());
    let options = AgentOptions::default().arguments(&["--metrics", ADDRESS, "--flow-export", &export]);
    let lab = Lab::start_with(cluster, &[deny_all("shop")], options)?;
    lab.expect("shop/client -x shop/server 80/TCP")?;
    Ok(lab)
}

#[test]
fn prometheus_reads_the_metrics_and_evaluates_all_queries() -> Result<()> {
    let temporary = tempfile::Builder::new().prefix("netpol-").tempdir()?;
    let lab = lab(temporary.path())?;
    let page = page(&lab)?;
    promtool_succeeds(&["check", "metrics"], &page)?;

    let file = temporary.path().join("prometheus.yaml");
    fs::write(&file, configuration()?)?;
    let server = Prometheus::start(lab.cluster.host("node-1").netns(), &file)?;
    wait_until("Prometheus has samples of the agent", || {
        Ok(!server.query("count_over_time(netpol_ready{node=\"node-1\"}[1m]) >= 3")?.is_empty())
    })?;

    let dashboard = Dashboard::read()?;
    let mut with_result = 0;
    for (title, query) in dashboard.queries() {
        let result = server.query(&without_variables(query)).with_context(|| format!("panel {title:?}"))?;
        let expected = must_have_result(query, &page);
        ensure!(!expected || !result.is_empty(), "panel {title:?} has no data: {query}");
        with_result += usize::from(expected);
    }
    ensure!(with_result > 20, "only {with_result} queries have data");
    for (metric, label) in dashboard.variables() {
        let values = server.query(&format!("count by ({label}) ({metric}{{{label}!=\"\"}})"))?;
        ensure!(!values.is_empty(), "label_values({metric}, {label}) is empty");
    }
    // The configuration adds the labels `namespace` and `pod` of the agent's pod. The agent's metrics have labels with
    // the same names, for the pod that was denied. The added labels must not replace them.
    let denied =
        server.query("netpol_packets_total{namespace=\"shop\", pod=\"client\", verdict=\"deny\", node=\"node-1\"}")?;
    ensure!(!denied.is_empty(), "denied packets are not counted for the pod");

    wait_until("all alerts are evaluated", || {
        let rules = rules(&server)?;
        ensure!(rules.iter().all(|rule| rule["health"] != "err"), "an alert has an error: {rules:#?}");
        Ok(rules.len() > 20 && rules.iter().all(|rule| rule["health"] == "ok"))
    })?;
    let firing: Vec<_> = rules(&server)?.into_iter().filter(|rule| rule["state"] == "firing").collect();
    ensure!(firing.is_empty(), "alerts fire for a new agent: {firing:#?}");
    Ok(())
}

/// Returns the alerts, as Prometheus has evaluated them.
fn rules(server: &Prometheus) -> Result<Vec<Value>> {
    let data = server.api("/api/v1/rules")?;
    let groups = data["groups"].as_array().context("no groups")?;
    Ok(groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
}
