//! Thousands of pods on other nodes are created, deleted and changed. This must not affect the traffic of local pods.

use std::time::Duration;

use anyhow::{Result, ensure};
use netpol_apiserver::{ApiServer, Resource, WatchFault};
use netpol_tests::{AgentOptions, Lab};
use serde_json::json;

use super::{allow_to_server, options, pods, start_background_flows, wait_until};

/// Number of pods on other nodes.
const PODS: u16 = 2_000;
/// An address of the outside host. In the objects of the API server, it is the address of a pod on another node.
const REMOTE_POD: &str = "203.0.113.5";

/// Writes a pod of another node to the API server only: it has no network namespace.
fn apply_remote_pod(server: &ApiServer, name: &str, address: &str, labels: &serde_json::Value) -> Result<()> {
    server.apply(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "spec": {"nodeName": "node-7", "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }))?;
    Ok(())
}

/// Returns the address of the remote pod `far-<number>`.
fn address(number: u16) -> String {
    format!("10.99.{}.{}", number / 250, number % 250 + 1)
}

/// Returns whether the agent has as many pods and policies as the API server.
fn is_in_sync(lab: &Lab) -> Result<bool> {
    for (resource, kind) in [(Resource::Pods, "pods"), (Resource::NetworkPolicies, "networkpolicies")] {
        let expected = lab.api_server().all(resource).len();
        let objects = lab.metric(&format!("netpol_source_objects{{kind=\"{kind}\"}}"))?;
        let in_sync = lab.metric(&format!("netpol_source_in_sync{{kind=\"{kind}\"}}"))?;
        if objects.to_string() != expected.to_string() || in_sync < 1.0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[test]
fn two_thousand_changing_remote_pods_do_not_affect_local_pods() -> Result<()> {
    let options = AgentOptions::default().api_server(options()?);
    let mut lab = Lab::start_with(pods().outside(REMOTE_POD), &[allow_to_server("")], options)?;
    let load = start_background_flows(&lab)?;
    for number in 0..PODS {
        let app = if number % 4 == 0 { "client" } else { "idle" };
        apply_remote_pod(lab.api_server(), &format!("far-{number}"), &address(number), &json!({"app": app}))?;
    }
    apply_remote_pod(lab.api_server(), "remote", REMOTE_POD, &json!({"app": "client"}))?;
    wait_until("the agent has all pods and policies", Duration::from_mins(1), || is_in_sync(&lab))?;
    // `->` means that the connection is allowed, `-x` that it is dropped.
    let from_remote =
        |arrow: &str| format!("{REMOTE_POD} {arrow} shop/server 80/TCP\nshop/client -> shop/server 80/TCP");
    lab.expect_without_reference_evaluator(&from_remote("->"))?;

    // Of each five pods, one is deleted, one takes over the address of the deleted pod, and two change their labels.
    // Some watches break at the same time.
    for number in 0..PODS {
        let (server, name) = (lab.api_server(), format!("far-{number}"));
        match number % 5 {
            0 => drop(server.delete(Resource::Pods, "shop", &name)),
            1 => apply_remote_pod(server, &name, &address(number - 1), &json!({"app": "client", "moved": "yes"}))?,
            2 | 3 => apply_remote_pod(server, &name, &address(number), &json!({"app": "client", "round": "2"}))?,
            _ => {}
        }
        if number % 400 == 399 {
            server.inject_watch_fault(
                Some(Resource::Pods),
                if number % 800 == 399 { WatchFault::CutInTheMiddle } else { WatchFault::End },
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    apply_remote_pod(lab.api_server(), "remote", REMOTE_POD, &json!({"app": "idle"}))?;
    lab.expect_without_reference_evaluator(&from_remote("-x"))?;
    wait_until("the agent has all pods and policies", Duration::from_mins(1), || is_in_sync(&lab))?;
    let socket = lab.agent().socket().display().to_string();
    let output = lab.agent().run_subcommand("status", &["--api-socket", &socket])?;
    ensure!(output.code == Some(0), "{output:?}");
    for pod in ["shop/client", "shop/server", "shop/other", "shop/never", "blog/web"] {
        ensure!(output.stdout.contains(pod), "{pod} is not among the enforced pods:\n{}", output.stdout);
    }
    ensure!(!output.stdout.contains("far-"), "status prints pods of other nodes:\n{}", output.stdout);

    // All pods of other nodes are deleted, except `remote`.
    for pod in lab.api_server().all(Resource::Pods) {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if name.starts_with("far-") {
            lab.api_server().delete(Resource::Pods, "shop", &name);
        }
    }
    wait_until("the agent has all pods and policies", Duration::from_mins(1), || is_in_sync(&lab))?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/other -x shop/server 80/TCP")?;
    load.finish()
}
