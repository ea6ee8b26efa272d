//! The test harness itself: without an agent, everything is reachable in every kind of cluster.

use std::time::Duration;

use anyhow::Result;
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::{EchoConnection, echo_datagram};
use netpol_tests::matrix::wait_until_expected;
use netpol_tests::packet::{Ip, Marker, protocol};
use netpol_tests::raw::{TestPacket, check};
use netpol_tests::{Cluster, Families, PodSpec, ProbeResult, Topology};

/// Builds a cluster with three pods on the first node, one pod on the second node, and hosts outside the cluster.
fn cluster(topology: Topology, families: Families) -> Result<Cluster> {
    Cluster::builder()
        .topology(topology)
        .families(families)
        .nodes(2)
        .pods(&[("a/one", ""), ("a/two", ""), ("b/three", "")])
        .pod(PodSpec::new("b/far").node(2))
        .outside("203.0.113.5")
        .outside("2001:db8::5")
        .build()
}

#[test]
fn every_host_reaches_every_other_in_every_kind_of_cluster() -> Result<()> {
    for topology in [Topology::Bridge, Topology::Routed, Topology::BridgePlugin, Topology::PtpPlugin] {
        for families in [Families::V4, Families::V6, Families::Dual] {
            let cluster = cluster(topology, families)?;
            let matrix = wait_until_expected(&cluster, &[(Tcp, 80), (Udp, 53)], Duration::from_secs(3))?;
            assert_eq!(matrix.allowed(), matrix.0.len(), "{topology:?} {families:?}");
            // No server listens on port 81.
            let closed = cluster.probe("a/one", "b/far", Tcp, 81);
            assert_eq!(cluster.try_all(&[closed])?, [ProbeResult::Refused]);
        }
    }
    Ok(())
}

#[test]
fn tcp_data_and_large_datagrams_and_raw_packets_arrive() -> Result<()> {
    let cluster = cluster(Topology::Bridge, Families::Dual)?;
    let mut connection = EchoConnection::open(&cluster, "a/one", "b/far", 80)?;
    assert!(connection.echoes(Duration::from_secs(1))?);
    connection.echo_bulk(200_000)?;
    assert_eq!(connection.path_mtu()?, 1500);
    assert!(echo_datagram(&cluster, "a/one", "a/two", 53, 4000)?);
    for (from, to) in [("a/one", "a/two"), ("a/one", "b/far"), ("outside", "a/one"), ("a/one", "outside")] {
        for (source, destination) in cluster.host(from).addresses().iter().zip(cluster.host(to).addresses()) {
            let marker = Marker::new();
            let packet = Ip::new(*source, *destination).carrying(protocol::GRE, &marker.0);
            let test_packet = TestPacket::new(&cluster, from, to, "GRE", marker, &[packet]);
            // `true`: the packet must arrive.
            check(&cluster, from, to, &[(test_packet, true)])?;
        }
    }
    Ok(())
}

#[test]
fn an_address_can_move_to_another_pod() -> Result<()> {
    let mut cluster = Cluster::builder().pods(&[("a/one", ""), ("a/two", "")]).build()?;
    let address = cluster.host("a/two").v4();
    cluster.remove_pod("a/two")?;
    // The number of a pod is the last byte of its address.
    cluster.add_pod(PodSpec::new("b/new").number(address.octets()[3]))?;
    assert_eq!(cluster.host("b/new").v4(), address);
    let matrix = wait_until_expected(&cluster, &[(Tcp, 80)], Duration::from_secs(3))?;
    assert_eq!(matrix.allowed(), matrix.0.len());
    Ok(())
}
