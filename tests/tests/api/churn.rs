//! Thousands of pods elsewhere that come, go and change.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_apiserver::{ApiServer, Resource, WatchFault};
use netpol_tests::{AgentOptions, Lab};
use serde_json::json;

use super::{load, options, pods, server_from, until};

const PODS: u16 = 2_000;
/// An address of the outside host: a pod's of another node as far as the API server says.
const ELSEWHERE: &str = "203.0.113.5";

/// A pod of another node. None of them is wired.
fn apply(server: &ApiServer, name: &str, address: &str, labels: &serde_json::Value) -> Result<()> {
    server.apply(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "spec": {"nodeName": "node-7", "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }))?;
    Ok(())
}

fn address(number: u16) -> String {
    format!("10.99.{}.{}", number / 250, number % 250 + 1)
}

fn metric(lab: &Lab, series: &str) -> Result<f64> {
    let page = lab.metrics()?;
    let line =
        page.lines().find_map(|line| line.strip_prefix(series)).with_context(|| format!("no {series}: {page}"))?;
    line.trim().parse().with_context(|| format!("reading {series}"))
}

fn agrees(lab: &Lab) -> Result<bool> {
    for (resource, kind) in [(Resource::Pods, "pods"), (Resource::NetworkPolicies, "networkpolicies")] {
        let there = lab.api_server().all(resource).len();
        let known = metric(lab, &format!("netpol_source_objects{{kind=\"{kind}\"}}"))?;
        let in_sync = metric(lab, &format!("netpol_source_in_sync{{kind=\"{kind}\"}}"))?;
        if known.to_string() != there.to_string() || in_sync < 1.0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[test]
fn churn_of_two_thousand_pods_is_followed_and_local_pods_stay_as_they_are() -> Result<()> {
    let options = AgentOptions::default().api_server(options()?);
    let mut lab = Lab::start_with(pods().outside(ELSEWHERE), &[server_from("")], options)?;
    let load = load(&lab)?;
    for number in 0..PODS {
        let app = if number % 4 == 0 { "client" } else { "idle" };
        apply(lab.api_server(), &format!("far-{number}"), &address(number), &json!({"app": app}))?;
    }
    apply(lab.api_server(), "traveller", ELSEWHERE, &json!({"app": "client"}))?;
    until("the agent knows as many pods as there are", Duration::from_mins(1), || agrees(&lab))?;
    let elsewhere = |arrow: &str| format!("{ELSEWHERE} {arrow} shop/server 80/TCP\nshop/client -> shop/server 80/TCP");
    lab.expect_without_reference(&elsewhere("->"))?;

    // Each fifth leaves, and comes back at another's address; a third changes its label; watches break now and then.
    for number in 0..PODS {
        let (server, name) = (lab.api_server(), format!("far-{number}"));
        match number % 5 {
            0 => drop(server.delete(Resource::Pods, "shop", &name)),
            1 => apply(server, &name, &address(number - 1), &json!({"app": "client", "moved": "yes"}))?,
            2 | 3 => apply(server, &name, &address(number), &json!({"app": "client", "round": "2"}))?,
            _ => {}
        }
        if number % 400 == 399 {
            server.watch_fault(
                Some(Resource::Pods),
                if number % 800 == 399 { WatchFault::Tear } else { WatchFault::End },
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    apply(lab.api_server(), "traveller", ELSEWHERE, &json!({"app": "idle"}))?;
    lab.expect_without_reference(&elsewhere("-x"))?;
    until("the agent knows as many pods as there are", Duration::from_mins(1), || agrees(&lab))?;
    let socket = lab.agent().socket().display().to_string();
    let said = lab.agent().run_subcommand("status", &["--api-socket", &socket])?;
    ensure!(said.code == Some(0), "{said:?}");
    for pod in ["shop/client", "shop/server", "shop/other", "shop/never", "blog/web"] {
        ensure!(said.stdout.contains(pod), "{pod} is not among what is enforced:\n{}", said.stdout);
    }
    ensure!(!said.stdout.contains("far-"), "pods of other nodes are told of:\n{}", said.stdout);

    // And all of them go.
    for pod in lab.api_server().all(Resource::Pods) {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if name.starts_with("far-") {
            lab.api_server().delete(Resource::Pods, "shop", &name);
        }
    }
    until("the agent knows as many pods as there are", Duration::from_mins(1), || agrees(&lab))?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
    load.finish()
}
