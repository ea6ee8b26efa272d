//! Outages of the API server, during which objects change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::{Network, Resource};
use netpol_tests::agent::options_with_deployed_role;
use netpol_tests::{ClusterBuilder, Lab, deny_all};

use super::{
    PROD_AND_FRIENDS, allow_to_server, lab_of, options, pods_without_load, start_background_flows, wait_until,
};

/// The verdicts before the changes of [`change_all_objects`].
const BEFORE: &str = "shop/client -> shop/server 80/TCP
     shop/other  -x shop/server 80/TCP
     shop/never  -x shop/server 80/TCP
     shop/client -x blog/web    80/TCP";

/// The verdicts after these changes.
const AFTER: &str = "shop/client -> shop/server 80/TCP
     shop/other  -> shop/server 80/TCP
     blog/web    -> shop/server 80/TCP
     shop/never  -x shop/server 80/TCP
     shop/server -x shop/other  80/TCP
     shop/client -> blog/web    80/TCP";

/// The labels of two pods before and after the changes. `client` is allowed and `never` is denied in both states. With
/// the labels of one state and the policy of the other state, their verdicts would be the opposite, so that a mixture
/// of both states is detected.
const LABELS: [[(&str, &str); 2]; 2] = [
    [("shop/client", "app=moving,side=left"), ("shop/never", "app=never,side=right")],
    [("shop/client", "app=moving,side=right"), ("shop/never", "app=never,side=left")],
];
/// A peer of the policy `shop/server`, before and after the changes.
const SIDES: [&str; 2] =
    [", {podSelector: {matchLabels: {side: left}}}", ", {podSelector: {matchLabels: {side: right}}}"];

fn start() -> Result<Lab> {
    let lab = lab_of(pods_with_labels(LABELS[0]), options()?, &[allow_to_server(SIDES[0])])?;
    lab.cluster.apply("second", &deny_all("blog"))?;
    lab.expect(BEFORE)?;
    Ok(lab)
}

fn pods_with_labels(labels: [(&str, &str); 2]) -> ClusterBuilder {
    labels.iter().fold(pods_without_load(), |cluster, (name, labels)| cluster.pods(&[(name, labels)]))
}

/// Deletes the policy file `second`, adds the file `third`, and changes the policy `shop/server`. Changes the labels of
/// pods and of a namespace. The changed policy matches the new labels of `client`, of `other` and of the namespace.
fn change_all_objects(lab: &mut Lab) -> Result<()> {
    for (name, labels) in LABELS[1] {
        lab.cluster.edit_pod(name, |pod| pod.labels(labels))?;
    }
    change_objects(lab, SIDES[1])
}

/// Makes the changes of [`change_all_objects`], except those of [`LABELS`]. `side`: the policy's peer, from [`SIDES`].
/// With the old peer, `client` stays allowed and `never` stays denied even while only some of the changes are applied.
fn change_objects(lab: &mut Lab, side: &str) -> Result<()> {
    lab.cluster.delete("second")?;
    lab.cluster.apply(
        "third",
        &netpol_tests::policy("shop/other", "{podSelector: {matchLabels: {app: other}}, policyTypes: [Ingress]}"),
    )?;
    lab.set_policies(&[allow_to_server(&format!("{PROD_AND_FRIENDS}{side}"))])?;
    lab.cluster.label_namespace("blog", "stage=prod")?;
    lab.cluster.edit_pod("shop/other", |pod| pod.labels("app=other,friend=yes"))?;
    lab.agent().sync_api_server()
}

#[test]
fn changes_during_an_outage_are_applied_without_a_mixture_of_old_and_new() -> Result<()> {
    for compacted in [false, true] {
        let mut lab = start()?;
        let load = start_background_flows(&lab)?;
        lab.api_server().set_network(Network::Refuse);
        change_all_objects(&mut lab)?;
        if compacted {
            lab.api_server().compact();
        }
        std::thread::sleep(Duration::from_secs(3));
        lab.expect_without_reference_evaluator(BEFORE).context("during the outage")?;
        lab.api_server().set_network(Network::Up);
        lab.expect(AFTER).with_context(|| format!("after the outage; history compacted: {compacted}"))?;
        load.finish().with_context(|| {
            format!("load; history compacted: {compacted}; log of the agent:\n{}", lab.agent().log())
        })?;
    }
    Ok(())
}

/// The agent cannot detect this outage: the connections stay open, and each watch delivers its events later.
#[test]
fn changes_are_applied_after_the_network_dropped_everything_for_a_while() -> Result<()> {
    let mut lab = start()?;
    let load = start_background_flows(&lab)?;
    lab.api_server().set_network(Network::BlackHole);
    change_objects(&mut lab, SIDES[0])?;
    std::thread::sleep(Duration::from_secs(3));
    lab.expect_without_reference_evaluator(BEFORE).context("while the network drops everything")?;
    lab.api_server().set_network(Network::Up);
    lab.expect(AFTER)?;
    load.finish()
}

/// A restarted API server forbids requests until its authorizer has read all roles.
#[test]
fn a_server_that_forbids_one_kind_after_an_outage_causes_no_mixture_of_old_and_new() -> Result<()> {
    let granted = options_with_deployed_role()?.rules;
    for forbidden in [Resource::NetworkPolicies, Resource::Pods] {
        let mut lab = start()?;
        let load = start_background_flows(&lab)?;
        lab.api_server().set_network(Network::Refuse);
        change_all_objects(&mut lab)?;
        std::thread::sleep(Duration::from_secs(2));
        lab.api_server().set_rules(granted.clone().without(forbidden, None));
        lab.api_server().set_network(Network::Up);
        std::thread::sleep(Duration::from_secs(8));
        lab.expect_without_reference_evaluator(BEFORE).with_context(|| format!("while {forbidden:?} are forbidden"))?;
        lab.api_server().set_rules(granted.clone());
        let granted_at = Instant::now();
        lab.expect(AFTER)?;
        ensure!(granted_at.elapsed() < Duration::from_secs(15), "the retry took {:?}", granted_at.elapsed());
        load.finish()
            .with_context(|| format!("{forbidden:?} were forbidden; log of the agent:\n{}", lab.agent().log()))?;
    }
    Ok(())
}

/// The outage is so long that the agent's backoff becomes long. After the outage, the server has other objects, tokens
/// and resource versions.
#[test]
fn after_a_long_outage_with_many_changes_the_agent_recovers_in_bounded_time() -> Result<()> {
    const OUTAGE: Duration = Duration::from_secs(20);
    // The backoff grows with the outage: it is at most as long as the outage so far, and at most 30 s.
    const RECOVERY: Duration = Duration::from_secs(20);
    let mut lab = start()?;
    let load = start_background_flows(&lab)?;
    let mut versions = [1_000_000_000, 1].into_iter();
    for (before, after, final_state) in [(BEFORE, AFTER, 1), (AFTER, BEFORE, 0)] {
        lab.api_server().set_network(Network::Refuse);
        let outage_start = Instant::now();
        // Alternates between the two states. The last round sets the final state.
        for round in 0..13 {
            set_state(&mut lab, (final_state + round) % 2)?;
            lab.api_server().rotate_token()?;
        }
        lab.api_server().renumber(versions.next().context("there is no version for this outage")?);
        lab.api_server().expire_old_tokens();
        // The server starts, but fails again.
        for _ in 0..2 {
            std::thread::sleep(Duration::from_secs(2));
            lab.api_server().set_network(Network::Up);
            lab.api_server().set_network(Network::Refuse);
        }
        std::thread::sleep(OUTAGE.saturating_sub(outage_start.elapsed()));
        lab.expect_without_reference_evaluator(before).context("during the outage")?;
        lab.api_server().set_network(Network::Up);
        let recovery_start = Instant::now();
        lab.expect(after).with_context(|| format!("log of the agent:\n{}", lab.agent().log()))?;
        ensure!(recovery_start.elapsed() < RECOVERY, "recovery took {:?} after {OUTAGE:?}", recovery_start.elapsed());
    }
    load.finish().with_context(|| format!("load; log of the agent:\n{}", lab.agent().log()))
}

/// Changes all objects to their state before [`change_all_objects`] (0) or after it (1).
fn set_state(lab: &mut Lab, state: usize) -> Result<()> {
    if state == 1 {
        return change_all_objects(lab);
    }
    for (name, labels) in LABELS[0] {
        lab.cluster.edit_pod(name, |pod| pod.labels(labels))?;
    }
    lab.cluster.apply("second", &deny_all("blog"))?;
    lab.cluster.delete("third")?;
    lab.set_policies(&[allow_to_server(SIDES[0])])?;
    lab.cluster.label_namespace("blog", "stage=test")?;
    lab.cluster.edit_pod("shop/other", |pod| pod.labels("app=other"))?;
    lab.agent().sync_api_server()
}

/// The server's machine lost power or its network: connections are not closed, and packets are not acknowledged.
#[test]
fn an_unreachable_server_is_detected_before_silent_watches_time_out() -> Result<()> {
    let mut lab = start()?;
    let load = start_background_flows(&lab)?;
    let port = lab.api_server().address().port();
    let vanished = Instant::now();
    lab.cluster.host("node-1").netns().nft(&format!(
        "add table inet vanished\n\
         add chain inet vanished in {{ type filter hook input priority 0; }}\n\
         add rule inet vanished in tcp dport {port} drop\n\
         add rule inet vanished in tcp sport {port} drop"
    ))?;
    change_objects(&mut lab, SIDES[0])?;
    // The agent must detect this before the timeout of 100 s for silent watches. All watches share one HTTP/2
    // connection, which the agent closes when a ping gets no response.
    let detected =
        |log: &str| log.lines().any(|line| line.contains("cannot watch nodes") && line.contains("stream closed"));
    wait_until("the agent logs that watches failed", Duration::from_secs(45), || Ok(detected(&lab.agent().log())))?;
    ensure!(vanished.elapsed() > Duration::from_secs(5), "the agent detected another failure:\n{}", lab.agent().log());
    lab.expect_without_reference_evaluator(BEFORE).context("while the server is unreachable")?;
    lab.cluster.host("node-1").netns().nft("delete table inet vanished")?;
    lab.expect(AFTER)?;
    load.finish()
}

#[test]
fn a_server_restored_from_a_backup_is_followed_without_a_mixture_of_old_and_new() -> Result<()> {
    let mut lab = start()?;
    let load = start_background_flows(&lab)?;
    let backup = lab.api_server().backup();
    lab.api_server().set_network(Network::Refuse);
    change_all_objects(&mut lab)?;
    lab.agent().wait_log(&["is the API server up"])?;
    std::thread::sleep(Duration::from_secs(1));
    lab.api_server().set_network(Network::Up);
    lab.expect(AFTER)?;
    lab.api_server().restore(backup);
    lab.expect_without_reference_evaluator(BEFORE)?;
    load.finish()
}

#[test]
fn enforcement_continues_when_the_agent_restarts_during_an_outage() -> Result<()> {
    let mut lab = start()?;
    let load = start_background_flows(&lab)?;
    lab.api_server().set_network(Network::Refuse);
    lab.agent().crash()?;
    lab.expect_without_reference_evaluator(BEFORE).context("without an agent")?;
    lab.agent().launch()?;
    change_all_objects(&mut lab)?;
    lab.agent().wait_log(&["is the API server up"])?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!lab.agent().is_ready(), "the agent is ready before it has read any object");
    lab.expect_without_reference_evaluator(BEFORE).context("with an agent that has read no object yet")?;
    lab.api_server().set_network(Network::Up);
    lab.agent().wait_ready()?;
    lab.expect(AFTER)?;
    let server = lab.api_server();
    wait_until("pods are watched", Duration::from_secs(10), || Ok(server.open_watches(Resource::Pods) == 1))?;
    load.finish()
}
