//! A server that is away, and comes back different.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::{Network, Resource};
use netpol_tests::agent::as_deployed;
use netpol_tests::{ClusterBuilder, Lab, deny_all};

use super::{PROD_AND_FRIENDS, lab_of, load, options, pods_but_two, server_from, until};

const BEFORE: &str = "shop/client -> shop/server 80/TCP
     shop/other  -x shop/server 80/TCP
     shop/never  -x shop/server 80/TCP
     shop/client -x blog/web    80/TCP";

const AFTER: &str = "shop/client -> shop/server 80/TCP
     shop/other  -> shop/server 80/TCP
     blog/web    -> shop/server 80/TCP
     shop/never  -x shop/server 80/TCP
     shop/server -x shop/other  80/TCP
     shop/client -> blog/web    80/TCP";

/// `client` may, `never` may not, before and after: but not with the labels of one time and the policy of the other.
const LABELS: [[(&str, &str); 2]; 2] = [
    [("shop/client", "app=moving,side=left"), ("shop/never", "app=never,side=right")],
    [("shop/client", "app=moving,side=right"), ("shop/never", "app=never,side=left")],
];
const SIDES: [&str; 2] =
    [", {podSelector: {matchLabels: {side: left}}}", ", {podSelector: {matchLabels: {side: right}}}"];

fn start() -> Result<Lab> {
    let lab = lab_of(pods_of(LABELS[0]), options()?, &[server_from(SIDES[0])])?;
    lab.cluster.apply("second", &deny_all("blog"))?;
    lab.expect(BEFORE)?;
    Ok(lab)
}

fn pods_of(labels: [(&str, &str); 2]) -> ClusterBuilder {
    labels.iter().fold(pods_but_two(), |cluster, (name, labels)| cluster.pods(&[(name, labels)]))
}

/// A policy that is withdrawn, one that is added, one that changes together with the labels of two pods, a pod and a namespace
/// with other labels.
fn jump(lab: &mut Lab) -> Result<()> {
    for (name, labels) in LABELS[1] {
        lab.cluster.edit_pod(name, |pod| pod.labels(labels))?;
    }
    edit(lab, SIDES[1])
}

/// The same, but for what would be wrong half done.
fn edit(lab: &mut Lab, side: &str) -> Result<()> {
    lab.cluster.delete("second")?;
    lab.cluster.apply(
        "third",
        &netpol_tests::policy("shop/other", "{podSelector: {matchLabels: {app: other}}, policyTypes: [Ingress]}"),
    )?;
    lab.policies(&[server_from(&format!("{PROD_AND_FRIENDS}{side}"))])?;
    lab.cluster.label_namespace("blog", "stage=prod")?;
    lab.cluster.edit_pod("shop/other", |pod| pod.labels("app=other,friend=yes"))?;
    lab.agent().sync_api_server()
}

#[test]
fn a_server_that_comes_back_different_is_followed_without_a_mixture() -> Result<()> {
    for forget in [false, true] {
        let mut lab = start()?;
        let load = load(&lab)?;
        lab.api_server().network(Network::Refuse);
        jump(&mut lab)?;
        if forget {
            lab.api_server().compact();
        }
        std::thread::sleep(Duration::from_secs(3));
        lab.expect_without_reference(BEFORE).context("while the server is away")?;
        lab.api_server().network(Network::Up);
        lab.expect(AFTER).with_context(|| format!("after it is back; changes forgotten: {forget}"))?;
        load.finish().with_context(|| {
            format!("over its absence; changes forgotten: {forget}; the agent says:\n{}", lab.agent().log())
        })?;
    }
    Ok(())
}

/// The agent cannot know that it missed anything: what it hears is what watches tell, in whatever order.
#[test]
fn a_network_that_swallows_everything_for_a_while_is_survived() -> Result<()> {
    let mut lab = start()?;
    let load = load(&lab)?;
    lab.api_server().network(Network::BlackHole);
    edit(&mut lab, SIDES[0])?;
    std::thread::sleep(Duration::from_secs(3));
    lab.expect_without_reference(BEFORE).context("while nothing comes through")?;
    lab.api_server().network(Network::Up);
    lab.expect(AFTER)?;
    load.finish()
}

/// As one does whose authorizer has not read all roles yet.
#[test]
fn a_server_that_is_back_and_refuses_one_kind_for_a_while_makes_no_mixture() -> Result<()> {
    let granted = as_deployed()?.rules;
    for refused in [Resource::NetworkPolicies, Resource::Pods] {
        let mut lab = start()?;
        let load = load(&lab)?;
        lab.api_server().network(Network::Refuse);
        jump(&mut lab)?;
        std::thread::sleep(Duration::from_secs(2));
        lab.api_server().set_rules(granted.clone().without(refused, None));
        lab.api_server().network(Network::Up);
        std::thread::sleep(Duration::from_secs(8));
        lab.expect_without_reference(BEFORE).with_context(|| format!("while {refused:?} are refused"))?;
        lab.api_server().set_rules(granted.clone());
        let again = Instant::now();
        lab.expect(AFTER)?;
        ensure!(again.elapsed() < Duration::from_secs(15), "it took {:?} to ask again", again.elapsed());
        load.finish().with_context(|| format!("{refused:?} were refused; the agent says:\n{}", lab.agent().log()))?;
    }
    Ok(())
}

/// Long enough that attempts have grown rare; every way of coming back different at once.
#[test]
fn a_long_outage_with_many_changes_new_tokens_and_other_versions_ends_in_bounded_time() -> Result<()> {
    const AWAY: Duration = Duration::from_secs(20);
    // Attempts grow rarer with the absence: the next comes before it has doubled, and no later than 30 s.
    const BACK: Duration = Duration::from_secs(20);
    let mut lab = start()?;
    let load = load(&lab)?;
    let mut versions = [1_000_000_000, 1].into_iter();
    for (before, after, end) in [(BEFORE, AFTER, 1), (AFTER, BEFORE, 0)] {
        lab.api_server().network(Network::Refuse);
        let gone = Instant::now();
        // There and back again; the last is there.
        for round in 0..13 {
            step(&mut lab, (end + round) % 2)?;
            lab.api_server().rotate_token()?;
        }
        lab.api_server().renumber(versions.next().context("one for each outage")?);
        lab.api_server().expire_old_tokens();
        // It starts, and falls over again.
        for _ in 0..2 {
            std::thread::sleep(Duration::from_secs(2));
            lab.api_server().network(Network::Up);
            lab.api_server().network(Network::Refuse);
        }
        std::thread::sleep(AWAY.saturating_sub(gone.elapsed()));
        lab.expect_without_reference(before).context("while the server is away")?;
        lab.api_server().network(Network::Up);
        let back = Instant::now();
        lab.expect(after).with_context(|| format!("the agent says:\n{}", lab.agent().log()))?;
        ensure!(back.elapsed() < BACK, "it took {:?} after an absence of {AWAY:?}", back.elapsed());
    }
    load.finish().with_context(|| format!("over its absences; the agent says:\n{}", lab.agent().log()))
}

/// From the world before a [`jump`] to the one after it (1), or back (0).
fn step(lab: &mut Lab, end: usize) -> Result<()> {
    if end == 1 {
        return jump(lab);
    }
    for (name, labels) in LABELS[0] {
        lab.cluster.edit_pod(name, |pod| pod.labels(labels))?;
    }
    lab.cluster.apply("second", &deny_all("blog"))?;
    lab.cluster.delete("third")?;
    lab.policies(&[server_from(SIDES[0])])?;
    lab.cluster.label_namespace("blog", "stage=test")?;
    lab.cluster.edit_pod("shop/other", |pod| pod.labels("app=other"))?;
    lab.agent().sync_api_server()
}

/// Its machine lost power, or a cable: no connection is closed, and nothing acknowledges.
#[test]
fn a_server_that_vanishes_without_a_word_is_noticed_within_half_a_minute() -> Result<()> {
    let mut lab = start()?;
    let load = load(&lab)?;
    let port = lab.api_server().address().port();
    let vanished = Instant::now();
    lab.cluster.host("node-1").netns().nft(&format!(
        "add table inet vanished\n\
         add chain inet vanished in {{ type filter hook input priority 0; }}\n\
         add rule inet vanished in tcp dport {port} drop\n\
         add rule inet vanished in tcp sport {port} drop"
    ))?;
    edit(&mut lab, SIDES[0])?;
    // Not the silence of 100 s after which a watch is dead in any case.
    let noticed = |log: &str| log.lines().any(|line| line.contains("cannot watch nodes") && line.contains("timed out"));
    until("the silence is noticed", Duration::from_secs(45), || Ok(noticed(&lab.agent().log())))?;
    ensure!(vanished.elapsed() > Duration::from_secs(5), "what was noticed is something else:\n{}", lab.agent().log());
    lab.expect_without_reference(BEFORE).context("while the server is not there")?;
    lab.cluster.host("node-1").netns().nft("delete table inet vanished")?;
    lab.expect(AFTER)?;
    load.finish()
}

#[test]
fn a_server_restored_from_a_backup_is_believed_without_a_mixture() -> Result<()> {
    let mut lab = start()?;
    let load = load(&lab)?;
    let backup = lab.api_server().backup();
    lab.api_server().network(Network::Refuse);
    jump(&mut lab)?;
    lab.agent().wait_log(&["is the API server up"])?;
    std::thread::sleep(Duration::from_secs(1));
    lab.api_server().network(Network::Up);
    lab.expect(AFTER)?;
    lab.api_server().restore(backup);
    lab.expect_without_reference(BEFORE)?;
    load.finish()
}

#[test]
fn an_agent_killed_while_the_server_is_away_enforces_on_and_gets_ready_once_it_is_back() -> Result<()> {
    let mut lab = start()?;
    let load = load(&lab)?;
    lab.api_server().network(Network::Refuse);
    lab.agent().crash()?;
    lab.expect_without_reference(BEFORE).context("without an agent")?;
    lab.agent().launch()?;
    jump(&mut lab)?;
    lab.agent().wait_log(&["is the API server up"])?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!lab.agent().is_ready(), "an agent that knows nothing yet says that it is ready");
    lab.expect_without_reference(BEFORE).context("under an agent that knows nothing yet")?;
    lab.api_server().network(Network::Up);
    lab.agent().wait_ready()?;
    lab.expect(AFTER)?;
    let server = lab.api_server();
    until("pods are watched", Duration::from_secs(10), || Ok(server.open_watches(Resource::Pods) == 1))?;
    load.finish()
}
