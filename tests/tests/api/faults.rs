//! Watches and lists that go wrong while traffic flows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_apiserver::{ApiServer, Effect, Fault, Resource, StreamingLists, Verb, WatchFault};
use netpol_tests::Lab;
use netpol_tests::lab::TIMEOUT;
use serde_json::{Value, json};

use super::{PROD_AND_FRIENDS, lab, load, options, server_from, until};

/// What goes wrong, before or while the objects change.
type Harm = (&'static str, fn(&ApiServer));

const WATCHES: [Harm; 8] = [
    ("events torn in the middle", |server| server.watch_fault(None, WatchFault::Tear)),
    ("bytes that are no event", |server| server.watch_fault(None, WatchFault::Garbage)),
    ("watches that end", |server| server.watch_fault(None, WatchFault::End)),
    ("watches that are cut", |server| server.watch_fault(None, WatchFault::Cut)),
    ("an ERROR event of code 410", |server| server.watch_fault(None, WatchFault::Error(410))),
    ("an ERROR event of code 500", |server| server.watch_fault(None, WatchFault::Error(500))),
    ("all connections cut", ApiServer::disconnect),
    ("a compaction, and all connections cut", |server| {
        server.compact();
        server.disconnect();
    }),
];

const REQUESTS: [Harm; 7] = [
    ("status 429 for lists", |server| refuse(server, &Effect::status(429).retry_after(1))),
    ("status 500 for lists", |server| refuse(server, &Effect::status(500))),
    ("status 503 for lists", |server| refuse(server, &Effect::status(503))),
    ("status 410 for lists", |server| refuse(server, &Effect::status(410))),
    ("lists cut in the middle", |server| refuse(server, &Effect::cut_in_the_middle())),
    ("lists that are none", |server| refuse(server, &Effect::garbage())),
    ("connections cut instead of lists", |server| refuse(server, &Effect::cut())),
];

/// Watches break, and whoever starts anew meets the effect twice, with a list and with a streaming list.
fn refuse(server: &ApiServer, effect: &Effect) {
    for resource in [Resource::Pods, Resource::Namespaces, Resource::NetworkPolicies] {
        for verb in [Verb::List, Verb::Watch] {
            server.inject(Fault::on(effect.clone()).verb(verb).resource(resource).times(1));
        }
    }
    server.watch_fault(None, WatchFault::Error(410));
}

/// Changes policies, labels of a pod and labels of a namespace under each fault, and waits until all of it shows.
fn suffer(harms: &[Harm], streaming: StreamingLists) -> Result<()> {
    let mut lab = lab(netpol_apiserver::Options { streaming_lists: streaming, ..options()? }, &[server_from("")])?;
    let load = load(&lab)?;
    for (round, (what, harm)) in harms.iter().enumerate() {
        change(&mut lab, *harm, round % 2 == 0).with_context(|| format!("after {what}"))?;
    }
    load.finish()
}

fn change(lab: &mut Lab, harm: fn(&ApiServer), opens: bool) -> Result<()> {
    settle(lab.api_server())?;
    let before = watches(lab.api_server());
    harm(lab.api_server());
    let (stage, friend, arrow) = if opens { ("prod", "yes", "->") } else { ("test", "no", "-x") };
    lab.policies(&[server_from(if opens { PROD_AND_FRIENDS } else { "" })])?;
    lab.cluster.label_namespace("blog", &format!("stage={stage}"))?;
    lab.cluster.edit_pod("shop/other", |pod| pod.labels(&format!("app=other,friend={friend}")))?;
    lab.expect(&format!(
        "shop/client -> shop/server 80/TCP
         shop/other  {arrow} shop/server 80/TCP
         blog/web    {arrow} shop/server 80/TCP
         shop/never  -x shop/server 80/TCP"
    ))?;
    let after = watches(lab.api_server());
    ensure!(after > before, "nothing broke: {before} watches were begun before, {after} now");
    lab.api_server().clear_faults();
    Ok(())
}

/// Until watches work again, so that the agent takes the next fault for the first: as it would be over hours.
fn settle(server: &ApiServer) -> Result<()> {
    let round = server.version().to_string();
    let object = |api_version: &str, kind: &str, namespace: Option<&str>, spec: Value| {
        json!({
            "apiVersion": api_version, "kind": kind, "spec": spec,
            "metadata": {"name": "unconcerned", "namespace": namespace, "labels": {"round": round}},
        })
    };
    for object in [
        object("v1", "Namespace", None, json!({})),
        object("v1", "Node", None, json!({})),
        object("v1", "Pod", Some("unconcerned"), json!({"nodeName": "node-7", "containers": []})),
        object("networking.k8s.io/v1", "NetworkPolicy", Some("unconcerned"), json!({"podSelector": {}})),
    ] {
        let kind = object["kind"].to_string();
        let version = server.apply(object)?.version;
        until(&format!("a change of a {kind} is told"), TIMEOUT, || Ok(server.sent_at(version).is_some()))?;
    }
    Ok(())
}

fn watches(server: &ApiServer) -> usize {
    server.requests().iter().filter(|request| request.verb == Some(Verb::Watch)).count()
}

#[test]
fn broken_watches_lose_nothing_and_let_nothing_through() -> Result<()> {
    suffer(&WATCHES, StreamingLists::Served)
}

#[test]
fn broken_watches_of_a_server_without_streaming_lists_neither() -> Result<()> {
    suffer(&WATCHES, StreamingLists::NoStorageSupport)
}

#[test]
fn refused_lists_lose_nothing_and_let_nothing_through() -> Result<()> {
    suffer(&REQUESTS, StreamingLists::Served)
}

#[test]
fn refused_lists_of_a_server_without_streaming_lists_neither() -> Result<()> {
    suffer(&REQUESTS, StreamingLists::Forbidden)
}

/// Slow: over HTTP/1.1 nothing short of silence for longer than between two bookmarks tells that such a watch is dead.
#[test]
fn watches_that_fall_silent_are_found_out() -> Result<()> {
    let lab = lab(netpol_apiserver::Options { http2: false, ..options()? }, &[server_from("")])?;
    let load = load(&lab)?;
    lab.api_server().watch_fault(None, WatchFault::Hang);
    lab.policies(&[server_from(", {podSelector: {matchLabels: {app: other}}}")])?;
    let begun = watches(lab.api_server());
    until("the policies are watched anew", Duration::from_secs(200), || Ok(watches(lab.api_server()) >= begun + 4))?;
    lab.expect(
        "shop/client -> shop/server 80/TCP\nshop/other -> shop/server 80/TCP\nshop/never -x shop/server 80/TCP",
    )?;
    load.finish()
}
