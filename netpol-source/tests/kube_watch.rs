//! Tests the kube source, which lists and watches the objects of an API server. In these tests, the server responds to
//! every request, but some servers cannot stream lists.

mod kube_cluster;

use std::time::Duration;

use anyhow::Result;
use kube_cluster::{Cluster, keys, pod, pod_key, policy, policy_key, server, service, short_times, slice};
use netpol_apiserver::{Options, Resource, StreamingLists};
use netpol_policy::model::{ObjectKey, ServiceKey};
use netpol_source::Subject;
use serde_json::json;

#[tokio::test]
async fn the_first_batch_has_all_objects_and_later_ones_have_changes() -> Result<()> {
    let mut cluster = Cluster::start(Options::default(), |server| {
        server.apply(pod("web", "web", "10.1.0.1")).expect("cannot create the pod");
        server.apply(policy("all")).expect("cannot create the policy");
    })
    .await;
    assert_eq!(cluster.batches.len(), 1);
    assert!(!cluster.batches[0].after_resync && cluster.feed.state.waiting().is_none());
    cluster.server.apply(pod("db", "db", "10.1.0.2"))?;
    let batch = cluster.next_batch().await;
    assert_eq!((keys(&batch), batch.after_resync), (vec!["+Pod shop/db".to_owned()], false));
    cluster.server.delete(Resource::Pods, "shop", "web");
    assert_eq!(keys(&cluster.next_batch().await), ["-Pod shop/web"]);
    assert_eq!(cluster.batches.last().map(|batch| batch.generation.0), Some(3));
    // The source streams the lists of its six resources, and reads no list in pages.
    assert!(cluster.requests_with("sendInitialEvents=true") >= 6 && cluster.requests_with("/pods?limit") == 0);
    Ok(())
}

#[tokio::test]
async fn changes_that_do_not_affect_policies_are_not_sent() -> Result<()> {
    let mut cluster = Cluster::start(Options::default(), |server| {
        server.apply(pod("web", "web", "10.1.0.1")).expect("cannot create the pod");
    })
    .await;
    let mut changed = pod("web", "web", "10.1.0.1");
    changed["status"]["message"] = json!("busy");
    assert!(cluster.server.apply(changed)?.changed);
    cluster.expect_no_batch(Duration::from_millis(300)).await;
    Ok(())
}

#[tokio::test]
async fn changes_of_services_and_their_slices_are_sent() -> Result<()> {
    let mut cluster = Cluster::start(Options::default(), |server| {
        server.apply(slice("web-x1", "web", &["10.1.0.1"])).expect("cannot create the slice");
    })
    .await;
    // Each test server has the Service `web`.
    assert_eq!((cluster.state.services.len(), cluster.state.slices.len()), (1, 1));
    cluster.server.apply(slice("web-x2", "web", &["10.1.0.2", "10.1.0.3"]))?;
    assert_eq!(keys(&cluster.next_batch().await), ["+EndpointSlice shop/web-x2"]);
    cluster.server.apply(service("db", "10.96.0.8"))?;
    assert_eq!(keys(&cluster.next_batch().await), ["+Service shop/db"]);
    // Changes of annotations and zones of a slice are not sent.
    let mut annotated = slice("web-x2", "web", &["10.1.0.2", "10.1.0.3"]);
    let trigger = "endpoints.kubernetes.io/last-change-trigger-time";
    annotated["metadata"]["annotations"] = json!({trigger: "2026-05-01T10:00:00Z"});
    annotated["endpoints"][0]["zone"] = json!("here");
    assert!(cluster.server.apply(annotated)?.changed);
    cluster.expect_no_batch(Duration::from_millis(300)).await;
    let answer = cluster.query(ObjectKey::Service(ServiceKey::new("shop", "db"))).await.expect("the query failed");
    assert!(answer.exists);
    cluster.server.delete(Resource::EndpointSlices, "shop", "web-x1");
    assert_eq!(keys(&cluster.next_batch().await), ["-EndpointSlice shop/web-x1"]);
    cluster.server.delete(Resource::Services, "shop", "db");
    assert_eq!(keys(&cluster.next_batch().await), ["-Service shop/db"]);
    cluster.wait_in_sync().await;
    Ok(())
}

#[tokio::test]
async fn lists_are_read_in_pages_if_the_server_cannot_stream_them() -> Result<()> {
    for streaming_lists in [StreamingLists::NoStorageSupport, StreamingLists::Forbidden] {
        let options = Options { streaming_lists, ..Options::default() };
        let mut cluster = Cluster::start(options, |server| {
            for index in 0..8 {
                server
                    .apply(pod(&format!("p{index}"), "web", &format!("10.1.0.{index}")))
                    .expect("cannot create the pod");
            }
        })
        .await;
        assert_eq!(cluster.requests_with("continue="), 2, "eight pods must be read in pages of three");
        cluster.server.apply(policy("late"))?;
        assert_eq!(keys(&cluster.next_batch().await), ["+NetworkPolicy shop/late"]);
        assert!(!cluster.batches.iter().any(|batch| batch.after_resync));
        expect_no_more_streaming_lists(&mut cluster).await?;
    }
    Ok(())
}

/// Forces the source to list all objects again, and checks that it does not request a streaming list.
async fn expect_no_more_streaming_lists(cluster: &mut Cluster) -> Result<()> {
    cluster.server.compact();
    cluster.server.disconnect();
    cluster.server.apply(policy("later"))?;
    cluster.wait_in_sync().await;
    // At the start, the source requested one streaming list for each of its six resources.
    assert_eq!(cluster.requests_with("sendInitialEvents=true"), 6, "the source must not request streaming lists again");
    Ok(())
}

/// A server that ignores `sendInitialEvents` does not mark the end of the list, so the first objects must not be used
/// as the complete list. The source detects such a server by a bookmark that does not mark the end, or because no data
/// arrives for some time.
#[tokio::test]
async fn lists_are_read_in_pages_if_the_server_ignores_send_initial_events() -> Result<()> {
    for bookmarks in [true, false] {
        // If `bookmarks` is false, the server would send the first bookmark only after the end of this test.
        let bookmark_every = if bookmarks { Duration::from_millis(100) } else { Duration::from_mins(1) };
        let options = Options { streaming_lists: StreamingLists::Ignored, bookmark_every, ..Options::default() };
        let server = server(options, |server| {
            for index in 0..8 {
                server
                    .apply(pod(&format!("p{index}"), "web", &format!("10.1.0.{index}")))
                    .expect("cannot create the pod");
            }
        });
        // With bookmarks, the limit for the time without data is longer than this test, so only a bookmark can show
        // that the server ignores `sendInitialEvents`.
        let limit = if bookmarks { kube_cluster::WAIT_TIMEOUT * 2 } else { short_times().streaming_list_idle_timeout };
        let mut cluster = Cluster::watch(
            server,
            netpol_source::kube::Options { streaming_list_idle_timeout: limit, ..short_times() },
        );
        cluster.wait_watching().await;
        cluster.server.apply(policy("meanwhile"))?;
        cluster.wait_in_sync().await;
        assert_eq!(cluster.batches.len(), 1, "the list must be sent as one batch");
        assert_eq!(cluster.requests_with("continue="), 2, "eight pods must be read in pages of three");
        cluster.server.delete(Resource::Pods, "shop", "p3");
        assert_eq!(keys(&cluster.next_batch().await), ["-Pod shop/p3"]);
        expect_no_more_streaming_lists(&mut cluster).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_invalid_policy_still_isolates_pods_and_does_not_affect_other_objects() -> Result<()> {
    let invalid_policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "bad"},
        "spec": {"podSelector": {"matchLabels": 7}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.300/8"}}]}]},
    });
    let mut invalid_pod = pod("strange", "web", "10.1.0.9");
    invalid_pod["spec"]["containers"] = json!("none");
    let mut cluster = Cluster::watch(
        server(Options::default(), |server| {
            server.apply(pod("web", "web", "10.1.0.1")).expect("cannot create the pod");
            server.apply(invalid_policy).expect("cannot create the policy");
            server.apply(invalid_pod).expect("cannot create the pod");
        }),
        short_times(),
    );
    cluster.next_batch().await;
    let policy = cluster.state.policies.values().next().expect("the policy does not exist");
    assert!(policy.pods.invalid && policy.ingress.is_some() && !policy.diagnostics.is_empty(), "{policy:?}");
    // The source skips the invalid pod `strange`.
    let pods: Vec<_> = cluster.state.pods.keys().map(|key| key.name.to_string()).collect();
    assert_eq!(pods, ["web"]);
    Ok(())
}

#[tokio::test]
async fn a_query_about_an_object_is_answered_when_its_watch_has_caught_up() -> Result<()> {
    let mut cluster = Cluster::start(Options::default(), |_| {}).await;
    // The source receives the query before the events of the changes.
    cluster.server.delay_events(Duration::from_millis(400));
    cluster.server.apply(policy("new"))?;
    let answer = cluster.query(policy_key("new")).await.expect("the query failed");
    assert!(answer.exists && cluster.state.contains(&policy_key("new")));
    assert_eq!(answer.generation, cluster.batches.last().expect("no batch was received").generation);
    cluster.server.delete(Resource::NetworkPolicies, "shop", "new");
    let answer = cluster.query(policy_key("new")).await.expect("the query failed");
    assert!(!answer.exists && !cluster.state.contains(&policy_key("new")));
    assert!(!cluster.query(pod_key("never")).await.expect("the query failed").exists);
    cluster.server.set_rules(netpol_apiserver::Rules::none());
    let error = cluster.query(pod_key("never")).await.expect_err("the query must be forbidden");
    assert!(error.contains("resources: [pods]"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_query_about_everything_is_answered_when_each_watch_has_caught_up() -> Result<()> {
    let fill = |server: &netpol_apiserver::ApiServer| {
        server.apply(pod("old", "web", "10.1.0.1")).expect("cannot create the pod");
        server.apply(policy("old")).expect("cannot create the policy");
    };
    let mut cluster = Cluster::start(Options::default(), fill).await;
    // The server sends no bookmarks in this test, only events.
    assert!(
        cluster.query_subject(Subject::Everything).await.expect("the query failed").exists,
        "a query must be answered even if no object changes"
    );
    for (name, resource) in [("pod", Resource::Pods), ("policy", Resource::NetworkPolicies)] {
        cluster.server.delay_events(Duration::from_millis(400));
        if resource == Resource::Pods {
            cluster.server.apply(pod("new", "web", "10.1.0.2"))?;
        } else {
            cluster.server.apply(policy("new"))?;
        }
        cluster.server.delete(resource, "shop", "old");
        cluster.query_subject(Subject::Everything).await.expect("the query failed");
        assert_eq!(cluster.state, cluster.server_state(), "{name}");
        cluster.server.delay_events(Duration::ZERO);
        cluster.wait_in_sync().await;
    }
    cluster.server.set_rules(netpol_apiserver::Rules::none());
    let error = cluster.query_subject(Subject::Everything).await.expect_err("the query must be forbidden");
    assert!(error.contains("cannot list"), "{error}");
    Ok(())
}

#[tokio::test]
async fn the_source_has_the_servers_state_after_changes_of_2000_pods_and_lost_watches() -> Result<()> {
    let address = |index: usize| format!("10.1.{}.{}", index / 250, index % 250 + 1);
    let mut cluster = Cluster::start(Options::default(), |server| {
        for index in 0..2000 {
            server.apply(pod(&format!("p{index}"), "web", &address(index))).expect("cannot create the pod");
        }
    })
    .await;
    for round in 0..10 {
        for index in (round * 37..2000).step_by(101) {
            let name = format!("p{index}");
            if (index + round) % 3 == 0 {
                cluster.server.delete(Resource::Pods, "shop", &name);
            } else {
                cluster.server.apply(pod(&name, &format!("v{round}"), &address(index)))?;
            }
        }
        match round % 4 {
            1 => cluster.server.disconnect(),
            2 => cluster.server.compact(),
            3 => cluster.server.inject_watch_fault(None, netpol_apiserver::WatchFault::Error(410)),
            _ => {}
        }
    }
    cluster.wait_in_sync().await;
    Ok(())
}
