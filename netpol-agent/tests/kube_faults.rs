//! The kube source against an API server that fails, in all the ways there are to fail.

mod kube_cluster;

use std::time::{Duration, Instant};

use anyhow::Result;
use kube_cluster::{Cluster, hasty, keys, pod, policy, server};
use netpol_apiserver::{ApiServer, Effect, Fault, Network, Options, Resource, Rules, Verb, WatchFault};
use tokio::time::sleep;

async fn cluster() -> Cluster {
    cluster_of(Options::default()).await
}

async fn cluster_of(options: Options) -> Cluster {
    let fill = |server: &ApiServer| {
        server.apply(pod("web", "web", "10.1.0.1")).expect("a pod");
        server.apply(pod("db", "db", "10.1.0.2")).expect("a pod");
        server.apply(policy("all")).expect("a policy");
    };
    let cluster = Cluster::start(options, fill).await;
    cluster.watching().await;
    cluster
}

#[tokio::test]
async fn a_torn_event_is_heard_again_and_is_no_gap() -> Result<()> {
    let mut cluster = cluster().await;
    for (index, fault) in
        [WatchFault::Tear, WatchFault::Garbage, WatchFault::Cut, WatchFault::End].into_iter().enumerate()
    {
        cluster.watching().await;
        cluster.server.watch_fault(Some(Resource::Pods), fault);
        cluster.server.apply(pod(&format!("new{index}"), "web", &format!("10.1.1.{index}")))?;
        assert_eq!(keys(&cluster.next().await), [format!("+Pod shop/new{index}")], "{fault:?}");
    }
    assert!(cluster.batches.iter().all(|batch| !batch.after_gap));
    Ok(())
}

#[tokio::test]
async fn a_watch_over_http_1_that_falls_silent_is_noticed() -> Result<()> {
    let mut cluster = cluster_of(Options { http2: false, ..Options::default() }).await;
    cluster.server.watch_fault(Some(Resource::Pods), WatchFault::Hang);
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    cluster.until_same().await;
    assert!(cluster.feed.state.kinds()["pods"].errors.contains_key("silent"));
    Ok(())
}

/// No bookmark comes while nothing changes: kube-apiserver sends none for a version that it has sent.
#[tokio::test]
async fn idle_watches_are_kept_and_a_dead_connection_is_noticed_within_30_seconds() -> Result<()> {
    let mut cluster = cluster().await;
    let watches = cluster.asked("watch=1");
    sleep(hasty().idle * 2).await;
    assert_eq!(cluster.asked("watch=1"), watches, "an idle watch was made anew");
    let errors = |cluster: &Cluster| cluster.feed.state.kinds().values().filter(|kind| !kind.errors.is_empty()).count();
    assert_eq!(errors(&cluster), 0);

    // The kernel acknowledges what it receives, and the server does not answer.
    cluster.server.network(Network::BlackHole);
    let begun = Instant::now();
    let kinds = cluster.feed.state.kinds().len();
    cluster.eventually("all kinds notice", || errors(&cluster) == kinds).await;
    println!("noticed after {:.1} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    cluster.server.network(Network::Up);
    cluster.until_same().await;
    Ok(())
}

#[tokio::test]
async fn gone_as_an_event_or_as_a_status_is_listed_anew_and_only_what_differs_is_told() -> Result<()> {
    // A watch that hangs is given up soon over HTTP/1.1 only.
    let mut cluster = cluster_of(Options { http2: false, ..Options::default() }).await;
    cluster.server.watch_fault(Some(Resource::Pods), WatchFault::Hang);
    cluster.server.delete(Resource::Pods, "shop", "db");
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    cluster.server.compact();
    cluster.server.watch_fault(Some(Resource::Pods), WatchFault::Error(410));
    let batch = cluster.next().await;
    assert_eq!((keys(&batch), batch.after_gap), (vec!["+Pod shop/new".to_owned(), "-Pod shop/db".to_owned()], true));
    let gone = Fault::on(Effect::status(410)).verb(Verb::Watch).resource(Resource::Pods).times(1);
    cluster.server.inject(gone);
    cluster.server.disconnect();
    cluster.eventually("listed anew", || cluster.feed.state.kinds()["pods"].relists >= 2).await;
    cluster.quiet(Duration::from_millis(300)).await;
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_away_and_comes_back_different_makes_one_jump() -> Result<()> {
    let mut cluster = cluster().await;
    cluster.server.network(Network::Refuse);
    cluster
        .eventually("it is noticed", || cluster.feed.state.kinds().values().all(|kind| kind.trouble.is_some()))
        .await;
    cluster.server.delete(Resource::Pods, "shop", "db");
    cluster.server.delete(Resource::Pods, "shop", "web");
    cluster.server.apply(pod("web", "other", "10.1.0.7"))?;
    cluster.server.delete(Resource::NetworkPolicies, "shop", "all");
    cluster.server.apply(policy("other"))?;
    cluster.server.compact();
    cluster.server.network(Network::Up);
    let batch = cluster.next().await;
    let expected = ["+NetworkPolicy shop/other", "+Pod shop/web", "-NetworkPolicy shop/all", "-Pod shop/db"];
    assert_eq!((keys(&batch), batch.after_gap), (expected.map(str::to_owned).to_vec(), true));
    cluster.until_same().await;
    Ok(())
}

#[tokio::test]
async fn a_restored_backup_is_noticed_though_its_versions_are_old() -> Result<()> {
    let mut cluster = cluster().await;
    let backup = cluster.server.backup();
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    cluster.server.apply(policy("new"))?;
    cluster.until_same().await;
    cluster.server.restore(backup);
    cluster.until_same().await;
    assert!(cluster.batches.last().is_some_and(|batch| batch.after_gap));
    cluster.server.apply(pod("after", "web", "10.1.1.2"))?;
    cluster.until_same().await;
    Ok(())
}

/// From the version that is known the watch would go on, without a word of what differs below it.
#[tokio::test]
async fn a_restored_backup_that_overtook_what_is_known_is_noticed_after_a_long_absence() -> Result<()> {
    let server = server(Options::default(), |server| {
        server.apply(pod("web", "web", "10.1.0.1")).expect("a pod");
    });
    let backup = server.backup();
    let options = netpol_agent::source::kube::Options { trust: Duration::from_secs(1), ..hasty() };
    let mut cluster = Cluster::watch(server, options);
    for index in 0..3 {
        cluster.server.apply(pod(&format!("old{index}"), "web", &format!("10.1.1.{index}")))?;
    }
    cluster.until_same().await;
    cluster.watching().await;
    cluster.server.network(Network::Refuse);
    cluster
        .eventually("it is noticed", || cluster.feed.state.kinds().values().all(|kind| kind.trouble.is_some()))
        .await;
    cluster.server.restore(backup);
    for index in 0..9 {
        cluster.server.apply(pod(&format!("new{index}"), "web", &format!("10.1.2.{index}")))?;
    }
    sleep(Duration::from_secs(2)).await;
    cluster.server.network(Network::Up);
    let batch = cluster.next().await;
    assert!(batch.after_gap && keys(&batch).contains(&"-Pod shop/old0".to_owned()), "{:?}", keys(&batch));
    cluster.until_same().await;
    Ok(())
}

#[tokio::test]
async fn a_list_that_fails_midway_empties_nothing() -> Result<()> {
    let mut cluster = cluster().await;
    let cut = Fault::on(Effect::cut_in_the_middle()).verb(Verb::Watch).resource(Resource::Pods).times(3);
    cluster.server.inject(cut);
    cluster.server.watch_fault(Some(Resource::Pods), WatchFault::Error(410));
    cluster.eventually("listed anew", || cluster.feed.state.kinds()["pods"].relists >= 1).await;
    cluster.quiet(Duration::from_millis(300)).await;
    assert_eq!(cluster.world.pods.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_page_that_fails_or_expires_begins_the_list_again() -> Result<()> {
    let server = server(Options::default(), |server| {
        for index in 0..8 {
            server.apply(pod(&format!("p{index}"), "web", &format!("10.1.0.{index}"))).expect("a pod");
        }
    });
    for effect in [Effect::status(500), Effect::status(410), Effect::cut_in_the_middle(), Effect::garbage()] {
        server.inject(Fault::on(effect).verb(Verb::List).resource(Resource::Pods).page(2).times(1));
    }
    let mut cluster = Cluster::watch(server, netpol_agent::source::kube::Options { streaming: false, ..hasty() });
    cluster.until_same().await;
    assert_eq!(cluster.batches.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_expired_token_is_read_again() -> Result<()> {
    let mut cluster = cluster().await;
    cluster.server.rotate_token()?;
    cluster.server.expire_old_tokens();
    cluster.server.disconnect();
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    let begun = std::time::Instant::now();
    cluster.until_same().await;
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(cluster.feed.state.kinds()["pods"].errors.contains_key("401"));
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again_when_it_says() -> Result<()> {
    let server = server(Options::default(), |_| {});
    server.inject(Fault::on(Effect::status(429).retry_after(2)).resource(Resource::Pods).times(1));
    server.inject(Fault::on(Effect::status(503)).resource(Resource::Nodes).times(3));
    let mut cluster = Cluster::watch(server, hasty());
    cluster.until_same().await;
    let pods: Vec<_> =
        cluster.server.requests().into_iter().filter(|request| request.resource == Some(Resource::Pods)).collect();
    assert!(pods[1].at - pods[0].at >= Duration::from_secs(2), "{pods:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_forbidden_is_named_holds_nobody_up_for_ever_and_works_once_granted() -> Result<()> {
    let rules = || Rules::all().without(Resource::NetworkPolicies, None);
    let server = server(Options { rules: rules(), ..Options::default() }, |server| {
        server.apply(policy("all")).expect("a policy");
    });
    let mut cluster = Cluster::watch(server, hasty());
    cluster.eventually("it is told", || cluster.feed.state.kinds()["networkpolicies"].trouble.is_some()).await;
    sleep(Duration::from_millis(300)).await;
    let waiting = cluster.feed.state.waiting().expect("it waits");
    for part in [
        "waiting for networkpolicies from the API server",
        "- apiGroups: [networking.k8s.io]\n  resources: [networkpolicies]",
    ] {
        assert!(waiting.contains(part), "{waiting}");
    }
    cluster.server.set_rules(Rules::all());
    cluster.until_same().await;
    // Taken away again: the others go on.
    cluster.server.set_rules(rules());
    cluster.server.end_forbidden_watches();
    cluster.eventually("it is told", || cluster.feed.state.kinds()["networkpolicies"].trouble.is_some()).await;
    cluster.server.apply(pod("new", "web", "10.1.1.1"))?;
    let batch = cluster.next().await;
    assert_eq!((keys(&batch), batch.after_gap), (vec!["+Pod shop/new".to_owned()], false));
    Ok(())
}

/// An upgrade whose `ClusterRole` is still the old one: without Services nothing would be known of where they lead.
#[tokio::test]
async fn the_role_of_an_older_version_is_not_enough_and_what_it_lacks_is_named() -> Result<()> {
    let read = &["get", "list", "watch"];
    let older = Rules::none().allow(&[""], &["pods", "namespaces", "nodes"], read);
    let older = older.allow(&["networking.k8s.io"], &["networkpolicies"], read);
    let mut cluster = Cluster::watch(server(Options { rules: older, ..Options::default() }, |_| {}), hasty());
    for (kind, rule) in [
        ("services", "- apiGroups: [\"\"]\n  resources: [services]"),
        ("endpointslices", "- apiGroups: [discovery.k8s.io]\n  resources: [endpointslices]"),
    ] {
        let trouble = || cluster.feed.state.kinds()[kind].trouble.clone();
        cluster.eventually("it is told", || trouble().is_some_and(|trouble| trouble.contains(rule))).await;
    }
    cluster.quiet(Duration::from_millis(300)).await;
    let waiting = cluster.feed.state.waiting().expect("it waits");
    assert!(waiting.contains("waiting for endpointslices, services from the API server"), "{waiting}");
    cluster.server.set_rules(Rules::all());
    cluster.until_same().await;
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() -> Result<()> {
    let server = server(Options::default(), |_| {});
    server.network(Network::Refuse);
    let mut cluster = Cluster::watch(server, hasty());
    sleep(Duration::from_secs(1)).await;
    assert!(cluster.feed.state.waiting().is_some());
    cluster.server.network(Network::BlackHole);
    sleep(Duration::from_secs(1)).await;
    cluster.server.network(Network::Up);
    cluster.until_same().await;
    Ok(())
}
