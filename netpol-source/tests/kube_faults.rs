//! Tests the kube source (it lists and watches the API server) with a server that fails in many ways. A version is a
//! `resourceVersion`.

mod kube_cluster;

use std::time::{Duration, Instant};

use anyhow::Result;
use kube_cluster::{Cluster, keys, pod, policy, server, short_times};
use netpol_apiserver::{ApiServer, Effect, Fault, Network, Options, Resource, Rules, Verb, WatchFault};
use tokio::time::sleep;

async fn cluster() -> Cluster {
    cluster_of(Options::default()).await
}

/// Starts a server with the pods `web` and `db` and the policy `all`, and a source that watches them.
async fn cluster_of(options: Options) -> Cluster {
    let fill = |server: &ApiServer| {
        server.apply(pod("web", "web", "10.1.0.1")).expect("cannot create the pod");
        server.apply(pod("db", "db", "10.1.0.2")).expect("cannot create the pod");
        server.apply(policy("all")).expect("cannot create the policy");
    };
    let cluster = Cluster::start(options, fill).await;
    cluster.wait_watching().await;
    cluster
}

#[tokio::test]
async fn after_a_broken_watch_the_missed_event_is_received_without_a_resync() -> Result<()> {
    let mut cluster = cluster().await;
    for (index, fault) in
        [WatchFault::CutInTheMiddle, WatchFault::Garbage, WatchFault::Cut, WatchFault::End].into_iter().enumerate()
    {
        cluster.wait_watching().await;
        cluster.server.inject_watch_fault(Some(Resource::Pods), fault);
        cluster.server.apply(pod(&format!("new{index}"), "web", &format!("10.1.1.{index}")))?;
        assert_eq!(keys(&cluster.next_batch().await), [format!("+Pod shop/new{index}")], "{fault:?}");
    }
    assert!(cluster.batches.iter().all(|batch| !batch.after_resync));
    Ok(())
}

#[tokio::test]
async fn a_silent_watch_over_http_1_is_detected() -> Result<()> {
    let mut cluster = cluster_of(Options { http2: false, ..Options::default() }).await;
    cluster.server.inject_watch_fault(Some(Resource::Pods), WatchFault::Hang);
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    cluster.wait_in_sync().await;
    assert!(cluster.feed.state.kinds()["pods"].errors.contains_key("timeout"));
    Ok(())
}

/// kube-apiserver sends no bookmark while the version stays the same. So a watch without any data is normal. A dead
/// connection is detected by HTTP/2 pings.
#[tokio::test]
async fn idle_watches_are_kept_and_a_dead_connection_is_detected_within_30_seconds() -> Result<()> {
    let mut cluster = cluster().await;
    let watches = cluster.requests_with("watch=1");
    sleep(short_times().idle_timeout * 2).await;
    assert_eq!(cluster.requests_with("watch=1"), watches, "an idle watch was replaced");
    let kinds_with_errors =
        |cluster: &Cluster| cluster.feed.state.kinds().values().filter(|kind| !kind.errors.is_empty()).count();
    assert_eq!(kinds_with_errors(&cluster), 0);

    // The server's kernel acknowledges the data that it receives, but the server does not respond.
    cluster.server.set_network(Network::BlackHole);
    let started = Instant::now();
    let kind_count = cluster.feed.state.kinds().len();
    cluster.wait_until("all kinds report an error", || kinds_with_errors(&cluster) == kind_count).await;
    println!("detected after {:.1} s", started.elapsed().as_secs_f64());
    assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    cluster.server.set_network(Network::Up);
    cluster.wait_in_sync().await;
    Ok(())
}

#[tokio::test]
async fn after_an_expired_version_the_source_lists_again_and_sends_only_the_difference() -> Result<()> {
    // The watch of pods hangs, so it misses two changes. Over HTTP/1.1, the source detects this by the idle timeout.
    let mut cluster = cluster_of(Options { http2: false, ..Options::default() }).await;
    cluster.server.inject_watch_fault(Some(Resource::Pods), WatchFault::Hang);
    cluster.server.delete(Resource::Pods, "shop", "db");
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    // The next watch cannot start from the old version: status 410.
    cluster.server.compact();
    cluster.server.inject_watch_fault(Some(Resource::Pods), WatchFault::Error(410));
    let batch = cluster.next_batch().await;
    assert_eq!((keys(&batch), batch.after_resync), (vec!["+Pod shop/new".to_owned(), "-Pod shop/db".to_owned()], true));
    // The pods are listed once more. Nothing has changed since the last list, so this list causes no batch.
    let gone = Fault::new(Effect::status(410)).verb(Verb::Watch).resource(Resource::Pods).times(1);
    cluster.server.inject(gone);
    cluster.server.disconnect();
    cluster.wait_until("pods are listed again", || cluster.feed.state.kinds()["pods"].relists >= 2).await;
    cluster.expect_no_batch(Duration::from_millis(300)).await;
    Ok(())
}

#[tokio::test]
async fn changes_during_an_outage_are_sent_as_one_resync() -> Result<()> {
    let mut cluster = cluster().await;
    cluster.server.set_network(Network::Refuse);
    cluster
        .wait_until("each kind reports a failure", || {
            cluster.feed.state.kinds().values().all(|kind| kind.current_error.is_some())
        })
        .await;
    cluster.server.delete(Resource::Pods, "shop", "db");
    cluster.server.delete(Resource::Pods, "shop", "web");
    cluster.server.apply(pod("web", "other", "10.1.0.7"))?;
    cluster.server.delete(Resource::NetworkPolicies, "shop", "all");
    cluster.server.apply(policy("other"))?;
    cluster.server.compact();
    cluster.server.set_network(Network::Up);
    let batch = cluster.next_batch().await;
    let expected = ["+NetworkPolicy shop/other", "+Pod shop/web", "-NetworkPolicy shop/all", "-Pod shop/db"];
    assert_eq!((keys(&batch), batch.after_resync), (expected.map(str::to_owned).to_vec(), true));
    cluster.wait_in_sync().await;
    Ok(())
}

#[tokio::test]
async fn a_restored_backup_with_older_versions_is_detected() -> Result<()> {
    let mut cluster = cluster().await;
    let backup = cluster.server.backup();
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    cluster.server.apply(policy("new"))?;
    cluster.wait_in_sync().await;
    cluster.server.restore(backup);
    cluster.wait_in_sync().await;
    assert!(cluster.batches.last().is_some_and(|batch| batch.after_resync));
    cluster.server.apply(pod("after", "web", "10.1.1.2"))?;
    cluster.wait_in_sync().await;
    Ok(())
}

/// After the restore and nine more changes, the server's version is higher than the last version that the source
/// received. A watch from the source's version would start without error, but would not report the objects that the
/// restore removed. After a long outage, the source lists all objects instead.
#[tokio::test]
async fn a_restored_backup_with_newer_versions_is_detected_after_a_long_outage() -> Result<()> {
    let server = server(Options::default(), |server| {
        server.apply(pod("web", "web", "10.1.0.1")).expect("cannot create the pod");
    });
    let backup = server.backup();
    let options = netpol_source::kube::Options { max_resume_age: Duration::from_secs(1), ..short_times() };
    let mut cluster = Cluster::watch(server, options);
    for index in 0..3 {
        cluster.server.apply(pod(&format!("old{index}"), "web", &format!("10.1.1.{index}")))?;
    }
    cluster.wait_in_sync().await;
    cluster.wait_watching().await;
    cluster.server.set_network(Network::Refuse);
    cluster
        .wait_until("each kind reports a failure", || {
            cluster.feed.state.kinds().values().all(|kind| kind.current_error.is_some())
        })
        .await;
    cluster.server.restore(backup);
    for index in 0..9 {
        cluster.server.apply(pod(&format!("new{index}"), "web", &format!("10.1.2.{index}")))?;
    }
    sleep(Duration::from_secs(2)).await;
    cluster.server.set_network(Network::Up);
    let batch = cluster.next_batch().await;
    assert!(batch.after_resync && keys(&batch).contains(&"-Pod shop/old0".to_owned()), "{:?}", keys(&batch));
    cluster.wait_in_sync().await;
    Ok(())
}

#[tokio::test]
async fn a_list_that_fails_midway_deletes_no_objects() -> Result<()> {
    let mut cluster = cluster().await;
    // The list is a streaming list: a watch that first sends all objects.
    let cut = Fault::new(Effect::cut_in_the_middle()).verb(Verb::Watch).resource(Resource::Pods).times(3);
    cluster.server.inject(cut);
    cluster.server.inject_watch_fault(Some(Resource::Pods), WatchFault::Error(410));
    cluster.wait_until("pods are listed again", || cluster.feed.state.kinds()["pods"].relists >= 1).await;
    cluster.expect_no_batch(Duration::from_millis(300)).await;
    assert_eq!(cluster.state.pods.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_page_that_fails_or_expires_restarts_the_list() -> Result<()> {
    let server = server(Options::default(), |server| {
        for index in 0..8 {
            server.apply(pod(&format!("p{index}"), "web", &format!("10.1.0.{index}"))).expect("cannot create the pod");
        }
    });
    for effect in [Effect::status(500), Effect::status(410), Effect::cut_in_the_middle(), Effect::garbage()] {
        server.inject(Fault::new(effect).verb(Verb::List).resource(Resource::Pods).page(2).times(1));
    }
    let mut cluster = Cluster::watch(server, netpol_source::kube::Options { streaming: false, ..short_times() });
    cluster.wait_in_sync().await;
    assert_eq!(cluster.batches.len(), 1);
    Ok(())
}

#[tokio::test]
async fn after_a_401_the_token_file_is_read_again() -> Result<()> {
    let mut cluster = cluster().await;
    cluster.server.rotate_token()?;
    cluster.server.expire_old_tokens();
    cluster.server.disconnect();
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    let started = std::time::Instant::now();
    cluster.wait_in_sync().await;
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(cluster.feed.state.kinds()["pods"].errors.contains_key("401"));
    Ok(())
}

#[tokio::test]
async fn a_request_to_a_busy_server_is_retried_after_the_requested_time() -> Result<()> {
    let server = server(Options::default(), |_| {});
    server.inject(Fault::new(Effect::status(429).retry_after(2)).resource(Resource::Pods).times(1));
    server.inject(Fault::new(Effect::status(503)).resource(Resource::Nodes).times(3));
    let mut cluster = Cluster::watch(server, short_times());
    cluster.wait_in_sync().await;
    let pods: Vec<_> =
        cluster.server.requests().into_iter().filter(|request| request.resource == Some(Resource::Pods)).collect();
    assert!(pods[1].at - pods[0].at >= Duration::from_secs(2), "{pods:?}");
    Ok(())
}

#[tokio::test]
async fn a_missing_permission_is_named_and_the_source_continues_when_it_is_granted() -> Result<()> {
    let without_policies = || Rules::all().without(Resource::NetworkPolicies, None);
    let server = server(Options { rules: without_policies(), ..Options::default() }, |server| {
        server.apply(policy("all")).expect("cannot create the policy");
    });
    let mut cluster = Cluster::watch(server, short_times());
    cluster
        .wait_until("the failure is reported", || cluster.feed.state.kinds()["networkpolicies"].current_error.is_some())
        .await;
    sleep(Duration::from_millis(300)).await;
    let waiting = cluster.feed.state.waiting().expect("the source waits for no kind");
    for part in [
        "waiting for networkpolicies from the API server",
        "- apiGroups: [networking.k8s.io]\n  resources: [networkpolicies]",
    ] {
        assert!(waiting.contains(part), "{waiting}");
    }
    cluster.server.set_rules(Rules::all());
    cluster.wait_in_sync().await;
    // If the permission is removed again, the other kinds are not affected.
    cluster.server.set_rules(without_policies());
    cluster.server.end_forbidden_watches();
    cluster
        .wait_until("the failure is reported", || cluster.feed.state.kinds()["networkpolicies"].current_error.is_some())
        .await;
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    let batch = cluster.next_batch().await;
    assert_eq!((keys(&batch), batch.after_resync), (vec!["+Pod shop/new".to_owned()], false));
    Ok(())
}

/// The agent was upgraded, but its `ClusterRole` was not. The older role does not permit reading Services and
/// `EndpointSlices`. Without these objects, the agent could not evaluate traffic to Services.
#[tokio::test]
async fn the_role_of_an_older_version_is_not_sufficient_and_missing_rules_are_named() -> Result<()> {
    let read = &["get", "list", "watch"];
    let older = Rules::none().allow(&[""], &["pods", "namespaces", "nodes"], read);
    let older = older.allow(&["networking.k8s.io"], &["networkpolicies"], read);
    let mut cluster = Cluster::watch(server(Options { rules: older, ..Options::default() }, |_| {}), short_times());
    for (kind, rule) in [
        ("services", "- apiGroups: [\"\"]\n  resources: [services]"),
        ("endpointslices", "- apiGroups: [discovery.k8s.io]\n  resources: [endpointslices]"),
    ] {
        let current_error = || cluster.feed.state.kinds()[kind].current_error.clone();
        cluster
            .wait_until("the missing rule is reported", || {
                current_error().is_some_and(|current_error| current_error.contains(rule))
            })
            .await;
    }
    cluster.expect_no_batch(Duration::from_millis(300)).await;
    let waiting = cluster.feed.state.waiting().expect("the source waits for no kind");
    assert!(waiting.contains("waiting for endpointslices, services from the API server"), "{waiting}");
    cluster.server.set_rules(Rules::all());
    cluster.wait_in_sync().await;
    Ok(())
}

/// A watch that stays open for 5 s counts as working. In this test, a request without a response also stays open longer
/// than that (6 s, the response timeout), but must count as failed.
#[tokio::test]
async fn a_server_that_never_responds_is_reported_as_an_outage() -> Result<()> {
    let options = netpol_source::kube::Options { response_timeout: Duration::from_secs(6), ..short_times() };
    let mut cluster = Cluster::watch(server(Options::default(), |_| {}), options);
    cluster.wait_in_sync().await;
    cluster.wait_watching().await;
    cluster.server.set_network(Network::BlackHole);
    cluster.server.disconnect();
    cluster
        .wait_until("each kind reports a failure", || {
            cluster.feed.state.kinds().values().all(|kind| kind.current_error.is_some())
        })
        .await;
    cluster.server.set_network(Network::Up);
    cluster.wait_in_sync().await;
    Ok(())
}

#[tokio::test]
async fn the_source_waits_for_a_server_that_starts_later() -> Result<()> {
    let server = server(Options::default(), |_| {});
    server.set_network(Network::Refuse);
    let mut cluster = Cluster::watch(server, short_times());
    sleep(Duration::from_secs(1)).await;
    assert!(cluster.feed.state.waiting().is_some());
    cluster.server.set_network(Network::BlackHole);
    sleep(Duration::from_secs(1)).await;
    cluster.server.set_network(Network::Up);
    cluster.wait_in_sync().await;
    Ok(())
}
