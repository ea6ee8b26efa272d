//! Who says it sends.

use anyhow::Result;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::raw::Link;
use netpol_tests::{AgentOptions, Lab, policy};

use super::{Shots, one_way_in, pairs, pods};

#[test]
fn s20_a_pod_sends_only_from_its_own_addresses() -> Result<()> {
    // `other` may send anything as far as policies go; but as itself.
    let mut lab = Lab::start(
        pods(),
        &[policy(
            "shop/server-from-client",
            "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
              ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        )],
    )?;
    let cluster = &lab.cluster;
    let mut shots = Shots::new(cluster, "shop/other", "shop/server");
    let mut own = Shots::new(cluster, "shop/client", "shop/server");
    for (client, server) in pairs(cluster, "shop/client", "shop/server") {
        let ip = Ip::new(client, server);
        shots.row("with a peer's address", false, |mark| vec![ip.udp(4000, 53, mark)]);
        own.row("with its own", true, |mark| vec![ip.udp(4000, 53, mark)]);
    }
    let gateway = Ip::new("10.244.1.1".parse()?, cluster.host("shop/server").v4().into());
    shots.row("with the node's address", false, |mark| vec![gateway.udp(4000, 53, mark)]);
    shots.check()?;
    own.check()?;
    lab.agent().wait_denied(|line| line.reason() == "foreign-source" && line.direction() == "egress")?;
    Ok(())
}

#[test]
fn s20_what_is_told_of_a_denial() -> Result<()> {
    let mut lab = Lab::start(pods(), &one_way_in())?;
    lab.expect("shop/other -x shop/server 80/TCP")?;
    let denied = lab.agent().wait_denied(|line| line.from() == "shop/other" && line.to() == "shop/server")?;
    assert_eq!((denied.direction(), denied.reason()), ("egress", "no-rule"));
    assert_eq!((denied.port(), denied.protocol()), (Some(80), "TCP"));
    assert_eq!(denied.policies(), ["shop/deny-all"]);
    // A frame for nobody's address is a denial too, and names the address.
    let cluster = &lab.cluster;
    let (client, server) = (cluster.host("shop/client"), cluster.host("shop/server"));
    let packet = Ip::new(client.v4().into(), "203.0.113.99".parse()?).udp(1, 2, b"stray");
    Link::open(client)?.send(&frame(server.mac(), client.mac(), &[], &packet))?;
    lab.agent().wait_denied(|line| line.from() == "shop/client" && line.to() == "203.0.113.99")?;
    Ok(())
}

#[test]
fn s20_the_source_guard_can_be_turned_off_for_a_node() -> Result<()> {
    let lab = Lab::start_with(
        pods(),
        &[policy(
            "shop/server-from-client",
            "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
              ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        )],
        AgentOptions::default().arguments(&["--no-source-guard"]),
    )?;
    // What a pod says it is then counts: that is what turning it off means.
    let mut shots = Shots::new(&lab.cluster, "shop/other", "shop/server");
    for (client, server) in pairs(&lab.cluster, "shop/client", "shop/server") {
        shots.row("with a peer's address", true, |mark| vec![Ip::new(client, server).udp(4000, 53, mark)]);
    }
    for (other, server) in pairs(&lab.cluster, "shop/other", "shop/server") {
        shots.row("with its own", false, |mark| vec![Ip::new(other, server).udp(4000, 53, mark)]);
    }
    shots.check()
}
