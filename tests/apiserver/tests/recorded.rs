//! Compares responses of the fake API server with recorded responses of a real server.

mod common;

use anyhow::{Context, Result, ensure};
use common::{client, client_of, pod, start};
use netpol_apiserver::{ApiServer, Options, Rules, StreamingLists};
use serde_json::{Value, json};

const USER: &str = "system:serviceaccount:shop:nobody";

/// Returns status and body of a GET request.
async fn get(server: &ApiServer, path: &str) -> Result<(u16, String)> {
    let directory = tempfile::tempdir()?;
    get_with(client(server, &directory).await?, path).await
}

async fn get_with(client: kube::Client, path: &str) -> Result<(u16, String)> {
    let request = http::Request::get(path).header("accept", "application/json").body(kube::client::Body::empty())?;
    let response = client.send(request).await?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await?;
    Ok((status, String::from_utf8(bytes.to_vec())?))
}

/// Returns the recorded response in fixtures/NAME.json.
fn recorded(name: &str) -> Result<Value> {
    let path = format!("{}/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    serde_json::from_str(&text).with_context(|| format!("reading {path}"))
}

/// Checks that the response to a GET request has this status, and the body in fixtures/NAME.json.
async fn check(server: &ApiServer, path: &str, status: u16, name: &str) -> Result<()> {
    let (code, body) = get(server, path).await?;
    let expected = recorded(name)?;
    let actual: Value = serde_json::from_str(&body).with_context(|| format!("{path} returned {body:?}"))?;
    ensure!(code == status && actual == expected, "{path}: {code} {actual:#}\na real server: {status} {expected:#}");
    Ok(())
}

#[tokio::test]
async fn error_responses_match_a_real_server() -> Result<()> {
    let options = Options { rules: Rules::none(), user: USER.to_owned(), ..Options::default() };
    let (server, _directory) = start(options)?;
    let netpols = "/apis/networking.k8s.io/v1/networkpolicies";
    check(&server, netpols, 403, "err-403-list").await?;
    let watch = "/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion=0";
    check(&server, watch, 403, "err-403-watch").await?;

    let pods = "/api/v1/pods";
    for (user, status, name) in [(json!({"token": "nonsense"}), 401, "err-401"), (json!({}), 403, "err-403-anon")] {
        let directory = tempfile::tempdir()?;
        let text = std::fs::read_to_string(server.write_credentials(directory.path())?)?;
        let mut kubeconfig: Value = serde_json::from_str(&text)?;
        kubeconfig["users"][0]["user"] = user;
        let (code, body) = get_with(client_of(serde_json::from_value(kubeconfig)?).await?, pods).await?;
        let actual: Value = serde_json::from_str(&body)?;
        ensure!(code == status && actual == recorded(name)?, "{code} {actual:#}");
    }
    Ok(())
}

#[tokio::test]
async fn errors_for_unavailable_resource_versions_match_a_real_server() -> Result<()> {
    // The resource versions of this test (235 and 297) are those in the recorded responses.
    let (server, _directory) = start(Options { first_version: 230, ..Options::default() })?;
    for name in ["node-exporter", "prom"] {
        server.apply(pod("mon", name, &json!({})))?;
    }
    for name in ["a", "b", "c"] {
        server.apply(pod("shop", name, &json!({})))?;
    }
    ensure!(server.version() == 235);
    let future = "/api/v1/pods?resourceVersion=99999999&resourceVersionMatch=NotOlderThan";
    check(&server, future, 504, "err-504-rv-too-large").await?;
    check(&server, "/api/v1/pods?watch=1&sendInitialEvents=true", 422, "err-422-sendinitial").await?;
    check(&server, "/api/v1/pods?watch=1&resourceVersion=abc", 500, "watch-badrv").await?;

    let (_, page) = get(&server, "/api/v1/pods?limit=2").await?;
    let page: Value = serde_json::from_str(&page)?;
    ensure!(page["kind"] == "PodList" && page["apiVersion"] == "v1" && page["metadata"]["remainingItemCount"] == 3);
    ensure!(page["items"][0]["kind"].is_null(), "items in a list must not have a kind: {page:#}");
    let token = page["metadata"]["continue"].as_str().context("the page has no continue token")?;
    let recorded_token = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MjM1LCJzdGFydCI6Ii9tb24vcHJvbVx1MDAwMCJ9";
    ensure!(token == recorded_token, "{token}");

    // Later pages of a list show the resource version of the first page, so they do not contain the new pod `d`. After
    // the server has removed the history (`compact`), the request for a later page fails.
    server.apply(pod("shop", "d", &json!({})))?;
    let next = format!("/api/v1/pods?limit=2&continue={token}");
    let (_, second) = get(&server, &next).await?;
    let second: Value = serde_json::from_str(&second)?;
    ensure!(second["metadata"]["resourceVersion"] == "235" && second["metadata"]["remainingItemCount"] == 1);

    for _ in 0..61 {
        server.apply(pod("shop", "e", &json!({"n": server.version().to_string()})))?;
    }
    server.compact();
    ensure!(server.version() == 297);
    check(&server, &next, 410, "err-410-list-continue").await?;
    let exact = "/api/v1/pods?resourceVersion=235&resourceVersionMatch=Exact&limit=1";
    check(&server, exact, 410, "err-410-list-exact").await?;
    let old = "/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion=235&timeoutSeconds=5";
    check(&server, old, 200, "watch-410-event").await
}

#[tokio::test]
async fn the_error_for_streaming_lists_without_storage_support_is_a_watch_event() -> Result<()> {
    let options = Options { streaming_lists: StreamingLists::NoStorageSupport, ..Options::default() };
    let (server, _directory) = start(options)?;
    let watch = "/api/v1/namespaces?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=3";
    check(&server, watch, 200, "watch-watchlist-unsupported").await
}

#[tokio::test]
async fn watches_send_the_events_that_match_a_selector() -> Result<()> {
    let (server, _directory) = start(Options::default())?;
    let first = server.apply(pod("shop", "web", &json!({"app": "web"})))?.version;
    for labels in [json!({"app": "other"}), json!({"app": "web"}), json!({"app": "web", "x": "y"})] {
        server.apply(pod("shop", "web", &labels))?;
    }
    server.delete(netpol_apiserver::Resource::Pods, "shop", "web");
    let path = format!(
        "/api/v1/pods?watch=1&allowWatchBookmarks=true&labelSelector=app%3Dweb&resourceVersion={first}&timeoutSeconds=1"
    );
    let (_, body) = get(&server, &path).await?;
    let events: Vec<Value> = body.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let reported: Vec<_> = events
        .iter()
        .map(|event| {
            let version = event["object"]["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let version: u64 = version.parse().unwrap_or_default();
            (event["type"].as_str().unwrap_or_default(), version - first)
        })
        .collect();
    // A watch with a selector reports an object that no longer matches as deleted, and an object that matches again as
    // added.
    let expected = [("DELETED", 1), ("ADDED", 2), ("MODIFIED", 3), ("DELETED", 4), ("BOOKMARK", 4)];
    ensure!(reported == expected, "{reported:?}");
    // The bookmark of a real server:
    // {"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":…,"spec":{"containers":null},"status":{}}}
    let bookmark = &events[4]["object"];
    ensure!(bookmark["spec"] == json!({"containers": null}) && bookmark["status"] == json!({}), "{bookmark}");
    Ok(())
}
