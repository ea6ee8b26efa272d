//! Attacks on the identity of pods: a pod uses the address of another pod. A pod's address is accepted only from the
//! pod's own interface, and the agent binds a veth to one pod until the veth is removed.

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::Tcp;
use netpol_tests::packet::{Ip, Marker, frame};
use netpol_tests::raw::{TestPacket, check};
use netpol_tests::{Cluster, Lab, PodSpec, ProbeResult};

use super::{allow_client_to_server, pods, rogue_sends_nothing};

/// Returns an IPv4 and an IPv6 datagram to `to`, for the interface of `sender`. The source addresses are those of
/// `claimed`. They are spoofed, unless `claimed` is `sender`.
fn datagrams_from(cluster: &Cluster, sender: &str, claimed: &str, to: &str) -> Vec<TestPacket> {
    let (sender, source, destination) = (cluster.host(sender), cluster.host(claimed), cluster.host(to));
    let next_hop = sender.next_hop(destination, cluster.topology());
    let pairs = destination.addresses().iter().filter_map(|to| Some((source.address_of_same_family(*to)?, *to)));
    let test_packet = |(from, to)| {
        let marker = Marker::new();
        let packet = Ip::new(from, to).udp(4000, 53, &marker.0);
        TestPacket::of_frames(&format!("{from} to {to}"), marker, vec![frame(next_hop, sender.mac(), &[], &packet)])
    };
    pairs.map(test_packet).collect()
}

/// `sender` sends datagrams to `to`, with the addresses of `claimed` as their sources. Checks whether they arrive:
/// `arrives` is the expected result.
fn expect_arrival(cluster: &Cluster, sender: &str, claimed: &str, to: &str, arrives: bool) -> Result<()> {
    let packets: Vec<_> =
        datagrams_from(cluster, sender, claimed, to).into_iter().map(|packet| (packet, arrives)).collect();
    check(cluster, sender, to, &packets).with_context(|| format!("from {sender} with the addresses of {claimed}"))
}

#[test]
fn hostile_a_pods_address_is_accepted_only_from_that_pod() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_client_to_server()])?;
    // This pod has no object, so the agent does not attach programs to its veth.
    lab.cluster.add_pod_without_manifest(PodSpec::new("shop/unmanaged"))?;
    let cluster = &lab.cluster;
    // A policy isolates `server` and allows `client`. No policy isolates `open`.
    for to in ["shop/server", "shop/open"] {
        expect_arrival(cluster, "shop/client", "shop/client", to, true)?;
        expect_arrival(cluster, "outside", "shop/client", to, false)?;
        expect_arrival(cluster, "shop/unmanaged", "shop/client", to, false)?;
    }
    lab.agent().wait_denied(|line| line.reason() == "unverified-source" && line.to() == "shop/server")?;
    // `outside` and `unmanaged` have no Pod objects. So packets from their real addresses are accepted.
    expect_arrival(&lab.cluster, "outside", "outside", "shop/open", true)?;
    expect_arrival(&lab.cluster, "shop/unmanaged", "shop/unmanaged", "shop/open", true)
}

#[test]
fn hostile_a_pod_with_another_pods_address_does_not_get_its_identity() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_client_to_server()])?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/rogue -x shop/server 80/TCP")?;
    let (rogue_address, client_address) = (lab.cluster.host("shop/rogue").v4(), lab.cluster.host("shop/client").v4());
    let rogue = lab.cluster.host("shop/rogue").netns().clone();
    rogue.ip(&format!(
        "addr del {rogue_address}/24 dev eth0\naddr add {client_address}/24 dev eth0\nroute replace default via 10.244.1.1 dev eth0"
    ))?;
    lab.agent().wait_log(&["conflict", "took an address of shop/client", "enforced as shop/rogue"])?;
    expect_arrival(&lab.cluster, "shop/rogue", "shop/client", "shop/server", false)?;
    expect_arrival(&lab.cluster, "shop/client", "shop/client", "shop/server", true)?;
    ensure!(lab.metrics()?.contains("\nnetpol_endpoint_conflicts 1\n"), "netpol_endpoint_conflicts is not 1");
    // A new agent does not bind the veth of `rogue` to `client`, either, although the veth now has the address of
    // `client`.
    lab.agent().restart()?;
    expect_arrival(&lab.cluster, "shop/rogue", "shop/client", "shop/server", false)?;
    expect_arrival(&lab.cluster, "shop/client", "shop/client", "shop/server", true)
}

#[test]
fn hostile_a_second_interface_with_a_pods_address_is_blocked() -> Result<()> {
    let mut lab = Lab::start(pods(), &[allow_client_to_server()])?;
    // `twin` has no Pod object. So the agent does not filter its traffic, as long as there is no conflict.
    lab.cluster.add_pod_without_manifest(PodSpec::new("shop/twin"))?;
    let (twin_address, client_address) = (lab.cluster.host("shop/twin").v4(), lab.cluster.host("shop/client").v4());
    expect_arrival(&lab.cluster, "shop/twin", "shop/twin", "shop/open", true)?;
    lab.cluster
        .host("shop/twin")
        .netns()
        .ip(&format!("addr del {twin_address}/24 dev eth0\naddr add {client_address}/24 dev eth0"))?;
    lab.agent().wait_log(&["conflict", "is bound to", "dropping all of its traffic"])?;
    for claimed in ["shop/client", "shop/twin"] {
        expect_arrival(&lab.cluster, "shop/twin", claimed, "shop/server", false)?;
        expect_arrival(&lab.cluster, "shop/twin", claimed, "shop/open", false)?;
    }
    expect_arrival(&lab.cluster, "shop/client", "shop/client", "shop/server", true)?;
    // The interface stays blocked even if `twin` gives the address back and uses its own address again.
    lab.cluster
        .host("shop/twin")
        .netns()
        .ip(&format!("addr del {client_address}/24 dev eth0\naddr add {twin_address}/24 dev eth0"))?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    expect_arrival(&lab.cluster, "shop/twin", "shop/twin", "shop/open", false)
}

#[test]
fn hostile_a_pod_with_its_address_on_lo_is_enforced() -> Result<()> {
    let mut lab = Lab::start(pods(), &[rogue_sends_nothing()])?;
    lab.cluster.add_pod_without_manifest(PodSpec::new("shop/hider").labels("app=rogue"))?;
    // Before the agent receives the Pod object, the pod moves its address from eth0 to lo.
    let address = lab.cluster.host("shop/hider").v4();
    lab.cluster.host("shop/hider").netns().ip(&format!(
        "addr del {address}/24 dev eth0\naddr add {address}/32 dev lo\nroute add 10.244.1.1 dev eth0\n\
         route add default via 10.244.1.1 dev eth0 onlink"
    ))?;
    let probe = lab.cluster.probe("shop/hider", "outside", Tcp, 80);
    let before = lab.cluster.try_all(&[probe])?;
    ensure!(before == [ProbeResult::Allowed], "expected no enforcement before the pod is known: {before:?}");
    lab.cluster.write_manifest("shop/hider")?;
    lab.expect("shop/hider -x outside 80/TCP\nshop/rogue -x outside 80/TCP")
}
