//! The agent's watches and lists fail while pods send packets and objects change. An allowed packet must not be lost,
//! and a denied packet must not pass.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_apiserver::{ApiServer, Effect, Fault, Resource, StreamingLists, Verb, WatchFault};
use netpol_tests::Lab;
use netpol_tests::lab::TIMEOUT;
use serde_json::{Value, json};

use super::{PROD_AND_FRIENDS, allow_to_server, lab, options, start_background_flows, wait_until};

/// The description of a fault, and a function that injects it.
type FaultCase = (&'static str, fn(&ApiServer));

const WATCH_FAULTS: [FaultCase; 8] = [
    ("events cut in the middle", |server| server.inject_watch_fault(None, WatchFault::CutInTheMiddle)),
    ("bytes that are not an event", |server| server.inject_watch_fault(None, WatchFault::Garbage)),
    ("watches that end", |server| server.inject_watch_fault(None, WatchFault::End)),
    ("watches that are cut", |server| server.inject_watch_fault(None, WatchFault::Cut)),
    ("an ERROR event of code 410", |server| server.inject_watch_fault(None, WatchFault::Error(410))),
    ("an ERROR event of code 500", |server| server.inject_watch_fault(None, WatchFault::Error(500))),
    ("all connections cut", ApiServer::disconnect),
    ("a compaction, and all connections cut", |server| {
        server.compact();
        server.disconnect();
    }),
];

const LIST_FAULTS: [FaultCase; 7] = [
    ("status 429 for lists", |server| fail_lists(server, &Effect::status(429).retry_after(1))),
    ("status 500 for lists", |server| fail_lists(server, &Effect::status(500))),
    ("status 503 for lists", |server| fail_lists(server, &Effect::status(503))),
    ("status 410 for lists", |server| fail_lists(server, &Effect::status(410))),
    ("lists cut in the middle", |server| fail_lists(server, &Effect::cut_in_the_middle())),
    ("bytes that are not a list", |server| fail_lists(server, &Effect::garbage())),
    ("connections cut before the response to a list", |server| fail_lists(server, &Effect::cut())),
];

/// Ends all watches, so that the agent lists the objects again. Injects the effect into the next list and the next
/// streaming list (a watch with `sendInitialEvents`) of pods, namespaces and policies.
fn fail_lists(server: &ApiServer, effect: &Effect) {
    for resource in [Resource::Pods, Resource::Namespaces, Resource::NetworkPolicies] {
        for verb in [Verb::List, Verb::Watch] {
            server.inject(Fault::new(effect.clone()).verb(verb).resource(resource).times(1));
        }
    }
    server.inject_watch_fault(None, WatchFault::Error(410));
}

/// Changes policies and the labels of a pod and of a namespace during each fault, and waits until all changes take
/// effect.
fn run_cases(cases: &[FaultCase], streaming: StreamingLists) -> Result<()> {
    let mut lab = lab(netpol_apiserver::Options { streaming_lists: streaming, ..options()? }, &[allow_to_server("")])?;
    let load = start_background_flows(&lab)?;
    for (round, (fault, inject)) in cases.iter().enumerate() {
        change_during_fault(&mut lab, *inject, round % 2 == 0).with_context(|| format!("with the fault: {fault}"))?;
    }
    load.finish()
}

/// Injects a fault, and then changes objects. `allow`: whether `other` and `blog/web` may connect to `server` after the
/// changes.
fn change_during_fault(lab: &mut Lab, inject: fn(&ApiServer), allow: bool) -> Result<()> {
    wait_for_watches(lab.api_server())?;
    let before = count_started_watches(lab.api_server());
    inject(lab.api_server());
    let (stage, friend, arrow) = if allow { ("prod", "yes", "->") } else { ("test", "no", "-x") };
    lab.set_policies(&[allow_to_server(if allow { PROD_AND_FRIENDS } else { "" })])?;
    lab.cluster.label_namespace("blog", &format!("stage={stage}"))?;
    lab.cluster.edit_pod("shop/other", |pod| pod.labels(&format!("app=other,friend={friend}")))?;
    lab.expect(&format!(
        "shop/client -> shop/server 80/TCP
         shop/other  {arrow} shop/server 80/TCP
         blog/web    {arrow} shop/server 80/TCP
         shop/never  -x shop/server 80/TCP"
    ))?;
    let after = count_started_watches(lab.api_server());
    ensure!(after > before, "no watch broke: {before} watches were started before the fault, {after} in total");
    lab.api_server().clear_faults();
    Ok(())
}

/// Waits until the watches of namespaces, nodes, pods and policies work again: changes an unrelated object of each
/// kind, and waits until the server has sent the change. Without this, the agent's backoff would increase with each
/// fault.
fn wait_for_watches(server: &ApiServer) -> Result<()> {
    let round = server.version().to_string();
    let object = |api_version: &str, kind: &str, namespace: Option<&str>, spec: Value| {
        json!({
            "apiVersion": api_version, "kind": kind, "spec": spec,
            "metadata": {"name": "unrelated", "namespace": namespace, "labels": {"round": round}},
        })
    };
    for object in [
        object("v1", "Namespace", None, json!({})),
        object("v1", "Node", None, json!({})),
        object("v1", "Pod", Some("unrelated"), json!({"nodeName": "node-7", "containers": []})),
        object("networking.k8s.io/v1", "NetworkPolicy", Some("unrelated"), json!({"podSelector": {}})),
    ] {
        let kind = object["kind"].to_string();
        let version = server.apply(object)?.version;
        wait_until(&format!("a change of a {kind} is sent to its watch"), TIMEOUT, || {
            Ok(server.sent_at(version).is_some())
        })?;
    }
    Ok(())
}

fn count_started_watches(server: &ApiServer) -> usize {
    server.requests().iter().filter(|request| request.verb == Some(Verb::Watch)).count()
}

#[test]
fn broken_watches_lose_no_allowed_packet_and_pass_no_denied_one() -> Result<()> {
    run_cases(&WATCH_FAULTS, StreamingLists::Served)
}

#[test]
fn broken_watches_without_streaming_lists_lose_no_allowed_packet_and_pass_no_denied_one() -> Result<()> {
    run_cases(&WATCH_FAULTS, StreamingLists::NoStorageSupport)
}

#[test]
fn failed_lists_lose_no_allowed_packet_and_pass_no_denied_one() -> Result<()> {
    run_cases(&LIST_FAULTS, StreamingLists::Served)
}

#[test]
fn failed_lists_without_streaming_lists_lose_no_allowed_packet_and_pass_no_denied_one() -> Result<()> {
    run_cases(&LIST_FAULTS, StreamingLists::Forbidden)
}

/// A silent watch is open, but the server sends nothing. Over HTTP/1.1, the agent detects this only because no event
/// and no bookmark arrives for longer than the interval between two bookmarks. So this test is slow.
#[test]
fn silent_watches_are_detected() -> Result<()> {
    let lab = lab(netpol_apiserver::Options { http2: false, ..options()? }, &[allow_to_server("")])?;
    let load = start_background_flows(&lab)?;
    lab.api_server().inject_watch_fault(None, WatchFault::Hang);
    lab.set_policies(&[allow_to_server(", {podSelector: {matchLabels: {app: other}}}")])?;
    let before = count_started_watches(lab.api_server());
    // The agent has six watches. At least four of them must have been started again.
    let restarted = || Ok(count_started_watches(lab.api_server()) >= before + 4);
    wait_until("the watches are started again", Duration::from_secs(200), restarted)?;
    lab.expect(
        "shop/client -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP\nshop/never -x shop/server 80/TCP",
    )?;
    load.finish()
}
