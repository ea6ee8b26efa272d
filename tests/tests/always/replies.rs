//! Answers.

use std::time::Duration;

use anyhow::{Context, Result};
use netpol_tests::flow::Conversation;
use netpol_tests::packet::Ip;
use netpol_tests::{Lab, Topology, policy};

use super::{Shots, one_way_in, pods};

#[test]
fn s18_replies_pass_whatever_the_other_direction_says() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed] {
        let lab = Lab::start(pods().topology(topology), &one_way_in())?;
        lab.expect(
            "shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP
             shop/server -x shop/client 80/TCP
             shop/server -x shop/client 53/UDP
             shop/client -x shop/server 54/UDP
             shop/client -x shop/other  80/TCP
             shop/other  -x shop/server 80/TCP",
        )?;
        let mut flow = Conversation::open(&lab.cluster, "shop/client", "shop/server", 80)?;
        flow.echo_bulk(300_000)?;
        assert!(flow.echoes(Duration::from_secs(1))?, "{topology:?}");
    }
    Ok(())
}

#[test]
fn s18_what_one_pod_opened_admits_nothing_at_another() -> Result<()> {
    let lab = Lab::start(pods(), &one_way_in())?;
    let flow = Conversation::open(&lab.cluster, "shop/client", "shop/server", 80)?;
    let (client, server) = flow.ends()?;
    // Same ports, as if it were an answer, but to the neighbour.
    let mut shots = Shots::new(&lab.cluster, "shop/server", "shop/other");
    let other = lab.cluster.host("shop/other").address_like(server.ip()).context("dual stack")?;
    let ip = Ip::new(server.ip(), other);
    shots.row("an answer at another pod", false, |mark| vec![ip.tcp(80, client.port(), 16, mark)]);
    shots.row("a datagram at another pod", false, |mark| vec![ip.udp(53, client.port(), mark)]);
    shots.check()
}

#[test]
fn s18_replies_pass_under_each_isolation_alone() -> Result<()> {
    let rows = [
        ("ingress of the client", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress]}"),
        ("egress of the server", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Egress]}"),
    ];
    for (what, spec) in rows {
        let lab = Lab::start(pods(), &[policy("shop/isolation", spec)])?;
        lab.expect(
            "shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP
             shop/server -x shop/client 80/TCP",
        )
        .context(what)?;
    }
    Ok(())
}
