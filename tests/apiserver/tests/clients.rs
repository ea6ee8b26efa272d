//! Tests the fake API server with the kube client library.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::{client, pod, start};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use netpol_apiserver::{
    ApiServer, Effect, Exec, Fault, Network, Options, Resource, Rules, StreamingLists, Verb, WatchFault,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the next event of a watcher as text: `all: a b` for a complete list, `+a` or `-a` for one object, or
/// `error: …`.
async fn next_event<S>(watch: &mut S) -> Result<String>
where
    S: Stream<Item = watcher::Result<Event<Pod>>> + Unpin,
{
    let name = |pod: Pod| pod.metadata.name.unwrap_or_default();
    let mut listed = Vec::new();
    loop {
        match timeout(TIMEOUT, watch.next()).await.context("no event within the timeout")?.context("the watch ended")? {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => listed.push(name(pod)),
            Ok(Event::InitDone) => return Ok(format!("all: {}", listed.join(" "))),
            Ok(Event::Apply(pod)) => return Ok(format!("+{}", name(pod))),
            Ok(Event::Delete(pod)) => return Ok(format!("-{}", name(pod))),
            Err(error) => return Ok(format!("error: {error:?}")),
        }
    }
}

/// Waits for an event in the form of [`next_event`]. Errors before the event are ignored.
async fn expect<S>(watch: &mut S, expected: &str) -> Result<()>
where
    S: Stream<Item = watcher::Result<Event<Pod>>> + Unpin,
{
    let mut before = Vec::new();
    loop {
        let reported = next_event(watch).await?;
        if reported == expected {
            return Ok(());
        }
        if !reported.starts_with("error") || before.len() > 20 {
            bail!("expected {expected:?}, got {reported:?} after {before:?}");
        }
        before.push(reported);
        // The watcher does not wait before it retries.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_for_watch(server: &ApiServer) -> Result<()> {
    let wait = async {
        while server.open_watches(Resource::Pods) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, wait).await.context("no watch was opened within the timeout")
}

#[tokio::test]
async fn watchers_work_with_lists_and_with_streaming_lists() -> Result<()> {
    for config in [watcher::Config::default().page_size(1), watcher::Config::default().streaming_lists()] {
        let (server, directory) = start(Options::default())?;
        for name in ["a", "b", "c"] {
            server.apply(pod("shop", name, &json!({})))?;
        }
        let pods = Api::<Pod>::all(client(&server, &directory).await?);
        let mut watch = Box::pin(watcher(pods, config));
        expect(&mut watch, "all: a b c").await?;
        let version = server.apply(pod("shop", "d", &json!({})))?.version;
        expect(&mut watch, "+d").await?;
        ensure!(server.sent_at(version).is_some(), "the server did not record when the event was sent");
        server.delete(Resource::Pods, "shop", "a");
        expect(&mut watch, "-a").await?;
    }
    Ok(())
}

#[tokio::test]
async fn watchers_recover_from_faults() -> Result<()> {
    let faults =
        [WatchFault::Garbage, WatchFault::Error(410), WatchFault::End, WatchFault::Cut, WatchFault::CutInTheMiddle];
    for fault in faults {
        let (server, directory) = start(Options::default())?;
        server.apply(pod("shop", "a", &json!({})))?;
        let pods = Api::<Pod>::all(client(&server, &directory).await?);
        let mut watch = Box::pin(watcher(pods, watcher::Config::default()));
        expect(&mut watch, "all: a").await?;
        // The watcher opens the watch only when it is polled.
        let polled = tokio::spawn(async move {
            let reported = next_event(&mut watch).await;
            (reported, watch)
        });
        wait_for_watch(&server).await?;
        server.inject_watch_fault(Some(Resource::Pods), fault);
        server.apply(pod("shop", "b", &json!({})))?;
        // The watcher may report errors first. Then it resumes the watch, or lists again.
        let (reported, mut watch) = polled.await?;
        let reported = reported?;
        if reported.starts_with("error") {
            let mut second = next_event(&mut watch).await?;
            while second.starts_with("error") {
                second = next_event(&mut watch).await?;
            }
            ensure!(second == "+b" || second == "all: a b", "{fault:?}: {second}");
        } else {
            ensure!(reported == "+b" || reported == "all: a b", "{fault:?}: {reported}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_server_without_streaming_lists_returns_an_error() -> Result<()> {
    for streaming in [StreamingLists::Forbidden, StreamingLists::NoStorageSupport] {
        let (server, directory) = start(Options { streaming_lists: streaming, ..Options::default() })?;
        let pods = Api::<Pod>::all(client(&server, &directory).await?);
        let mut watch = Box::pin(watcher(pods, watcher::Config::default().streaming_lists()));
        let reported = next_event(&mut watch).await?;
        ensure!(reported.starts_with("error"), "{streaming:?}: {reported}");
    }
    Ok(())
}

#[tokio::test]
async fn the_port_stays_the_same_across_network_outages() -> Result<()> {
    let (server, directory) = start(Options::default())?;
    let pods = Api::<Pod>::all(client(&server, &directory).await?);
    let all = ListParams::default();
    pods.list(&all).await?;
    server.set_network(Network::Refuse);
    ensure!(std::net::TcpStream::connect(server.address()).is_err(), "the connection was not refused");
    ensure!(pods.list(&all).await.is_err());
    server.set_network(Network::Up);
    pods.list(&all).await.context("listing after the network is up again")?;
    server.set_network(Network::BlackHole);
    ensure!(
        timeout(Duration::from_millis(300), pods.list(&all)).await.is_err(),
        "a response came through the black hole"
    );
    server.set_network(Network::Up);
    timeout(TIMEOUT, pods.list(&all)).await?.context("listing after the black hole")?;
    Ok(())
}

#[tokio::test]
async fn an_expired_token_is_refused_and_a_new_token_is_accepted() -> Result<()> {
    let (server, directory) = start(Options::default())?;
    let pods = Api::<Pod>::all(client(&server, &directory).await?);
    pods.list(&ListParams::default()).await?;
    server.rotate_token()?;
    server.expire_old_tokens();
    let refused = pods.list(&ListParams::default()).await;
    ensure!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 401), "{refused:?}");
    let pods = Api::<Pod>::all(client(&server, &directory).await?);
    pods.list(&ListParams::default()).await?;
    Ok(())
}

#[tokio::test]
async fn faults_apply_to_the_given_page() -> Result<()> {
    let (server, directory) = start(Options::default())?;
    for name in ["a", "b", "c"] {
        server.apply(pod("shop", name, &json!({})))?;
    }
    let pods = Api::<Pod>::all(client(&server, &directory).await?);
    let fault = Fault::new(Effect::status(410)).verb(Verb::List).resource(Resource::Pods).page(2).times(1);
    server.inject(fault);
    let first = pods.list(&ListParams::default().limit(1)).await?;
    let token = first.metadata.continue_.context("the list has no second page")?;
    let second = ListParams::default().limit(1).continue_token(&token);
    let refused = pods.list(&second).await;
    ensure!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 410), "{refused:?}");
    pods.list(&second).await?;
    server.inject(Fault::new(Effect::cut_in_the_middle()).times(1));
    ensure!(pods.list(&ListParams::default()).await.is_err());
    pods.list(&ListParams::default()).await?;
    Ok(())
}

#[tokio::test]
async fn clients_can_create_patch_and_delete() -> Result<()> {
    let (server, directory) = start(Options::default())?;
    let pods = Api::<Pod>::namespaced(client(&server, &directory).await?, "shop");
    let new: Pod = serde_json::from_value(pod("shop", "a", &json!({"app": "web"})))?;
    let created = pods.create(&PostParams::default(), &new).await?;
    ensure!(created.metadata.uid.is_some());
    let second = pods.create(&PostParams::default(), &new).await;
    ensure!(matches!(&second, Err(kube::Error::Api(status)) if status.code == 409), "{second:?}");
    let patch = Patch::Merge(json!({"metadata": {"labels": {"app": null, "x": "y"}}}));
    let patched = pods.patch("a", &PatchParams::default(), &patch).await?;
    ensure!(patched.metadata.labels.unwrap_or_default().into_iter().eq([("x".to_owned(), "y".to_owned())]));
    pods.delete("a", &kube::api::DeleteParams::default()).await?;
    ensure!(server.get(Resource::Pods, "shop", "a").is_none());
    Ok(())
}

#[tokio::test]
async fn a_directory_is_mirrored() -> Result<()> {
    let (server, _directory) = start(Options::default())?;
    let manifests = tempfile::tempdir()?;
    let file = manifests.path().join("a.yaml");
    let text = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    // Replaces the file by a rename. Otherwise, the server could read the file when it is truncated and still empty.
    let replace = |text: &str| {
        let partial = file.with_extension("partial");
        std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &file))
    };
    replace(&format!("{}---\n{}", text("a"), text("b")))?;
    let mirror = server.mirror(manifests.path())?;
    let names =
        || server.all(Resource::Namespaces).iter().map(|one| one["metadata"]["name"].clone()).collect::<Vec<_>>();
    ensure!(names() == ["a", "b"]);
    replace(&text("c"))?;
    ensure!(mirror.sync()?.is_empty());
    ensure!(names() == ["c"]);
    replace("apiVersion: [unfinished")?;
    ensure!(mirror.sync()?.len() == 1, "a file that cannot be read must be reported");
    ensure!(names() == ["c"], "a file that cannot be read must not change objects");
    std::fs::remove_file(&file)?;
    let wait = async {
        while !names().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, wait).await.context("the mirror did not delete the object of the removed file")
}

/// Starts a fake agent, which reads until the client closes its sending direction, and then sends the text back in
/// upper case. Returns the path of the agent's socket.
fn start_fake_agent(directory: &TempDir) -> Result<std::path::PathBuf> {
    use std::io::{Read, Write};
    let path = directory.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        stream.write_all(text.to_uppercase().as_bytes())
    });
    Ok(path)
}

#[tokio::test]
async fn exec_connects_to_a_socket_and_the_client_can_close_one_direction() -> Result<()> {
    let (server, directory) = start(Options::default())?;
    server.apply(pod("kube-system", "agent", &json!({})))?;
    let socket = start_fake_agent(&directory)?;
    server.on_exec(move |request| match request.command.as_slice() {
        [command] if command == "connect" => Exec::Socket(socket.clone()),
        _ => Exec::Fails("unknown command".to_owned(), 2),
    });
    let pods: Api<Pod> = Api::namespaced(client(&server, &directory).await?, "kube-system");
    let parameters = AttachParams::default().stdin(true);
    let mut process = pods.exec("agent", ["connect"], &parameters).await?;
    let (mut input, mut output) = (process.stdin().context("input")?, process.stdout().context("output")?);
    input.write_all(b"hello").await?;
    input.shutdown().await?;
    let mut text = String::new();
    output.read_to_string(&mut text).await?;
    ensure!(text == "HELLO", "{text}");

    let mut process = pods.exec("agent", ["other"], &parameters).await?;
    let status = process.take_status().context("a status")?;
    let mut errors = process.stderr().context("errors")?;
    let mut error_text = String::new();
    errors.read_to_string(&mut error_text).await?;
    let status = status.await.context("a status")?;
    let is_expected = error_text == "unknown command" && status.reason.as_deref() == Some("NonZeroExitCode");
    ensure!(is_expected, "{error_text} {status:?}");
    Ok(())
}

#[tokio::test]
async fn exec_without_a_pod_a_permission_or_a_known_protocol_fails() -> Result<()> {
    // The client library does not support this protocol.
    let (server, directory) = start(Options { exec_protocols: &["v3.channel.k8s.io"], ..Options::default() })?;
    server.apply(pod("kube-system", "agent", &json!({})))?;
    server.on_exec(|_| Exec::Silent);
    let pods: Api<Pod> = Api::namespaced(client(&server, &directory).await?, "kube-system");
    let code = async |name: &str| match pods.exec(name, ["connect"], &AttachParams::default()).await {
        Err(kube::Error::Api(status)) => Some(status.code),
        Ok(_) | Err(_) => None,
    };
    ensure!(code("agent").await == Some(400));
    ensure!(code("absent").await == Some(404));
    server.set_rules(Rules::none().allow(&[""], &["pods/exec"], &["get"]));
    ensure!(code("agent").await == Some(403), "exec over a WebSocket must need the verb create, not only get");
    Ok(())
}
