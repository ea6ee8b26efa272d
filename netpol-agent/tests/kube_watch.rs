//! The kube source against an API server that behaves, in all the ways there are to behave.

mod kube_cluster;

use std::time::Duration;

use anyhow::Result;
use kube_cluster::{Cluster, hasty, keys, pod, pod_key, policy, policy_key, server, service, slice};
use netpol_agent::source::Subject;
use netpol_apiserver::{Options, Resource, StreamingLists};
use netpol_policy::model::{ObjectKey, ServiceKey};
use serde_json::json;

#[tokio::test]
async fn everything_comes_first_and_then_each_change() -> Result<()> {
    let mut cluster = Cluster::start(Options::default(), |server| {
        server.apply(pod("web", "web", "10.1.0.1")).expect("a pod");
        server.apply(policy("all")).expect("a policy");
    })
    .await;
    assert_eq!(cluster.batches.len(), 1);
    assert!(!cluster.batches[0].after_gap && cluster.feed.state.waiting().is_none());
    cluster.server.apply(pod("db", "db", "10.1.0.2"))?;
    let batch = cluster.next().await;
    assert_eq!((keys(&batch), batch.after_gap), (vec!["+Pod shop/db".to_owned()], false));
    cluster.server.delete(Resource::Pods, "shop", "web");
    assert_eq!(keys(&cluster.next().await), ["-Pod shop/web"]);
    assert_eq!(cluster.batches.last().map(|batch| batch.revision.0), Some(3));
    assert!(cluster.asked("sendInitialEvents=true") >= 6 && cluster.asked("/pods?limit") == 0);
    Ok(())
}

#[tokio::test]
async fn what_policies_do_not_need_is_no_news() -> Result<()> {
    let mut cluster = Cluster::start(Options::default(), |server| {
        server.apply(pod("web", "web", "10.1.0.1")).expect("a pod");
    })
    .await;
    let mut other = pod("web", "web", "10.1.0.1");
    other["status"]["message"] = json!("busy");
    assert!(cluster.server.apply(other)?.changed);
    cluster.quiet(Duration::from_millis(300)).await;
    Ok(())
}

#[tokio::test]
async fn services_and_their_slices_come_and_go() -> Result<()> {
    let mut cluster = Cluster::start(Options::default(), |server| {
        server.apply(slice("web-x1", "web", &["10.1.0.1"])).expect("a slice");
    })
    .await;
    assert_eq!((cluster.world.services.len(), cluster.world.slices.len()), (1, 1));
    cluster.server.apply(slice("web-x2", "web", &["10.1.0.2", "10.1.0.3"]))?;
    assert_eq!(keys(&cluster.next().await), ["+EndpointSlice shop/web-x2"]);
    cluster.server.apply(service("db", "10.96.0.8"))?;
    assert_eq!(keys(&cluster.next().await), ["+Service shop/db"]);
    // When a slice was written is no news.
    let mut again = slice("web-x2", "web", &["10.1.0.2", "10.1.0.3"]);
    let trigger = "endpoints.kubernetes.io/last-change-trigger-time";
    again["metadata"]["annotations"] = json!({trigger: "2026-05-01T10:00:00Z"});
    again["endpoints"][0]["zone"] = json!("here");
    assert!(cluster.server.apply(again)?.changed);
    cluster.quiet(Duration::from_millis(300)).await;
    let known = cluster.ask(ObjectKey::Service(ServiceKey::new("shop", "db"))).await.expect("it can be known");
    assert!(known.exists);
    cluster.server.delete(Resource::EndpointSlices, "shop", "web-x1");
    assert_eq!(keys(&cluster.next().await), ["-EndpointSlice shop/web-x1"]);
    cluster.server.delete(Resource::Services, "shop", "db");
    assert_eq!(keys(&cluster.next().await), ["-Service shop/db"]);
    cluster.until_same().await;
    Ok(())
}

#[tokio::test]
async fn servers_without_streaming_lists_are_read_in_pages() -> Result<()> {
    for streaming_lists in [StreamingLists::NoStorageSupport, StreamingLists::Forbidden] {
        let options = Options { streaming_lists, ..Options::default() };
        let mut cluster = Cluster::start(options, |server| {
            for index in 0..8 {
                server.apply(pod(&format!("p{index}"), "web", &format!("10.1.0.{index}"))).expect("a pod");
            }
        })
        .await;
        assert_eq!(cluster.asked("continue="), 2, "eight pods in pages of three");
        cluster.server.apply(policy("late"))?;
        assert_eq!(keys(&cluster.next().await), ["+NetworkPolicy shop/late"]);
        assert!(!cluster.batches.iter().any(|batch| batch.after_gap));
        cluster.server.compact();
        cluster.server.disconnect();
        cluster.server.apply(policy("later"))?;
        cluster.until_same().await;
        assert_eq!(cluster.asked("sendInitialEvents=true"), 6, "remembered");
    }
    Ok(())
}

/// Nothing says where the list ends: objects must not be taken for all there are. A bookmark, or silence, tells.
#[tokio::test]
async fn servers_that_ignore_that_a_list_is_asked_for_are_read_in_pages() -> Result<()> {
    for bookmarks in [true, false] {
        let bookmark_every = if bookmarks { Duration::from_millis(100) } else { Duration::from_mins(1) };
        let options = Options { streaming_lists: StreamingLists::Ignored, bookmark_every, ..Options::default() };
        let server = server(options, |server| {
            for index in 0..8 {
                server.apply(pod(&format!("p{index}"), "web", &format!("10.1.0.{index}"))).expect("a pod");
            }
        });
        let patience = if bookmarks { kube_cluster::PATIENCE * 2 } else { hasty().patience };
        let mut cluster = Cluster::watch(server, netpol_agent::source::kube::Options { patience, ..hasty() });
        cluster.watching().await;
        cluster.server.apply(policy("meanwhile"))?;
        cluster.until_same().await;
        assert_eq!(cluster.batches.len(), 1, "it is told once it is whole");
        assert_eq!(cluster.asked("continue="), 2, "eight pods in pages of three");
        cluster.server.delete(Resource::Pods, "shop", "p3");
        assert_eq!(keys(&cluster.next().await), ["-Pod shop/p3"]);
        cluster.server.compact();
        cluster.server.disconnect();
        cluster.server.apply(policy("later"))?;
        cluster.until_same().await;
        assert_eq!(cluster.asked("sendInitialEvents=true"), 6, "remembered");
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_that_is_not_understood_isolates_and_takes_nobody_down() -> Result<()> {
    let bad = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "bad"},
        "spec": {"podSelector": {"matchLabels": 7}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.300/8"}}]}]},
    });
    let mut strange = pod("strange", "web", "10.1.0.9");
    strange["spec"]["containers"] = json!("none");
    let mut cluster = Cluster::watch(
        server(Options::default(), |server| {
            server.apply(pod("web", "web", "10.1.0.1")).expect("a pod");
            server.apply(bad).expect("a policy");
            server.apply(strange).expect("a pod");
        }),
        hasty(),
    );
    cluster.next().await;
    let policy = cluster.world.policies.values().next().expect("it is there");
    assert!(policy.pods.invalid && policy.ingress.is_some() && !policy.problems.is_empty(), "{policy:?}");
    let pods: Vec<_> = cluster.world.pods.keys().map(|key| key.name.to_string()).collect();
    assert_eq!(pods, ["web"]);
    Ok(())
}

#[tokio::test]
async fn who_asks_is_answered_once_the_watch_has_it() -> Result<()> {
    let mut cluster = Cluster::start(Options::default(), |_| {}).await;
    cluster.server.delay_events(Duration::from_millis(400));
    cluster.server.apply(policy("new"))?;
    let known = cluster.ask(policy_key("new")).await.expect("it can be known");
    assert!(known.exists && cluster.world.contains(&policy_key("new")));
    assert_eq!(known.revision, cluster.batches.last().expect("one").revision);
    cluster.server.delete(Resource::NetworkPolicies, "shop", "new");
    let known = cluster.ask(policy_key("new")).await.expect("it can be known");
    assert!(!known.exists && !cluster.world.contains(&policy_key("new")));
    assert!(!cluster.ask(pod_key("never")).await.expect("it can be known").exists);
    cluster.server.set_rules(netpol_apiserver::Rules::none());
    let error = cluster.ask(pod_key("never")).await.expect_err("nobody may ask");
    assert!(error.contains("resources: [pods]"), "{error}");
    Ok(())
}

#[tokio::test]
async fn who_asks_about_everything_is_answered_once_the_watch_of_each_kind_has_it() -> Result<()> {
    let fill = |server: &netpol_apiserver::ApiServer| {
        server.apply(pod("old", "web", "10.1.0.1")).expect("a pod");
        server.apply(policy("old")).expect("a policy");
    };
    let mut cluster = Cluster::start(Options::default(), fill).await;
    // No bookmark comes to help: only events say what is there.
    assert!(cluster.ask_about(Subject::Everything).await.expect("it can be known").exists, "nothing is new");
    for (name, resource) in [("pod", Resource::Pods), ("policy", Resource::NetworkPolicies)] {
        cluster.server.delay_events(Duration::from_millis(400));
        if resource == Resource::Pods {
            cluster.server.apply(pod("new", "web", "10.1.0.2"))?;
        } else {
            cluster.server.apply(policy("new"))?;
        }
        cluster.server.delete(resource, "shop", "old");
        cluster.ask_about(Subject::Everything).await.expect("it can be known");
        assert_eq!(cluster.world, cluster.truth(), "{name}");
        cluster.server.delay_events(Duration::ZERO);
        cluster.until_same().await;
    }
    cluster.server.set_rules(netpol_apiserver::Rules::none());
    let error = cluster.ask_about(Subject::Everything).await.expect_err("nobody may ask");
    assert!(error.contains("cannot list"), "{error}");
    Ok(())
}

#[tokio::test]
async fn two_thousand_pods_with_churn_end_as_the_server_has_them() -> Result<()> {
    let address = |index: usize| format!("10.1.{}.{}", index / 250, index % 250 + 1);
    let mut cluster = Cluster::start(Options::default(), |server| {
        for index in 0..2000 {
            server.apply(pod(&format!("p{index}"), "web", &address(index))).expect("a pod");
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
            3 => cluster.server.watch_fault(None, netpol_apiserver::WatchFault::Error(410)),
            _ => {}
        }
    }
    cluster.until_same().await;
    Ok(())
}
