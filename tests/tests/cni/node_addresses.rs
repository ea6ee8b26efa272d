//! Node addresses that are added and removed while the agent runs: item 15 of docs/semantics.md.
//!
//! The number in the name of a test (`s15_…`) is that of the item.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::Tcp;
use netpol_tests::lab::TIMEOUT;
use netpol_tests::{Cluster, Families, Lab, Netns, PodSpec, ProbeResult, Topology, deny_all};

/// Timeout for a datagram on a machine that also runs other tests.
const DATAGRAM_TIMEOUT: Duration = Duration::from_millis(400);

/// Starts a cluster with one pod. A policy without rules isolates the pod in both directions.
fn start(topology: Topology) -> Result<Lab> {
    let pods = Cluster::builder().topology(topology).families(Families::Dual).pods(&[("shop/client", "")]);
    Lab::start(pods, &[deny_all("shop")])
}

fn socket(netns: &Netns, at: SocketAddr) -> Result<UdpSocket> {
    let socket =
        netns.run(|| UdpSocket::bind(at).with_context(|| format!("cannot bind to {at} in {}", netns.name())))?;
    socket.set_read_timeout(Some(DATAGRAM_TIMEOUT))?;
    Ok(socket)
}

/// Returns whether a datagram from one socket arrives at the other.
fn arrives(from: &UdpSocket, to: &UdpSocket) -> Result<bool> {
    let message = format!("{:?}", Instant::now());
    from.send_to(message.as_bytes(), to.local_addr()?)?;
    let mut buffer = [0; 256];
    loop {
        match to.recv(&mut buffer) {
            // Ignore earlier datagrams that arrive late.
            Ok(length) if &buffer[..length] == message.as_bytes() => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
            Err(error) => return Err(error).context("cannot receive a datagram"),
        }
    }
}

/// Waits until datagrams between a pod and another host pass in both directions, or in neither if `passes` is false.
fn wait_until_passes(pod: &UdpSocket, other: &UdpSocket, passes: bool) -> Result<()> {
    let start = Instant::now();
    loop {
        let found = (arrives(other, pod)?, arrives(pod, other)?);
        if found == (passes, passes) {
            return Ok(());
        }
        ensure!(start.elapsed() < TIMEOUT, "passed to and from the pod: {found:?}, expected {passes}");
    }
}

/// Moves an address between the node and an external host, as keepalived does.
fn check_moving_address(topology: Topology, address: IpAddr) -> Result<()> {
    let lab = start(topology)?;
    let cluster = &lab.cluster;
    let (node, outside) = (cluster.host("node-1").netns(), cluster.host("outside").netns());
    // nodad: without duplicate address detection, so that the IPv6 address can be used at once.
    let prefix = if address.is_ipv4() { "24" } else { "64 nodad" };
    let (add, remove) =
        (format!("addr add {address}/{prefix} dev uplink"), format!("addr del {address}/{prefix} dev uplink"));
    let pod_address =
        cluster.host("shop/client").address_of_same_family(address).context("the pod has no address of this family")?;
    let pod = socket(cluster.host("shop/client").netns(), SocketAddr::new(pod_address, 5000))?;
    let target = SocketAddr::new(address, 6000);

    for round in 0..2 {
        node.ip(&add)?;
        let server = socket(node, target)?;
        wait_until_passes(&pod, &server, true).with_context(|| format!("the node has the address, round {round}"))?;
        // No server listens at port 81. The node refuses the connection, so the packet was allowed.
        let refused = lab.try_at("shop/client", "node-1", &address.to_string(), Tcp, 81)?;
        ensure!(refused == ProbeResult::Refused, "connection to the node's new address: {refused:?}");
        drop(server);

        // When an external host has the address, the known flow must stop, too: the datagrams still have the addresses
        // and ports that were allowed above.
        node.ip(&remove)?;
        outside.ip(&add)?;
        let server = socket(outside, target)?;
        wait_until_passes(&pod, &server, false)
            .with_context(|| format!("an outside host has the address, round {round}"))?;
        let dropped = lab.try_at("shop/client", "outside", &address.to_string(), Tcp, 81)?;
        ensure!(dropped == ProbeResult::Dropped, "connection to the node's former address: {dropped:?}");
        drop(server);
        outside.ip(&remove)?;
    }
    Ok(())
}

#[test]
fn s15_a_moving_address_is_allowed_while_the_node_has_it() -> Result<()> {
    for topology in [Topology::Bridge, Topology::PtpPlugin] {
        for address in ["172.31.77.200", "fd31:77::c8"] {
            check_moving_address(topology, address.parse()?).with_context(|| format!("{topology:?}, {address}"))?;
        }
    }
    Ok(())
}

#[test]
fn s15_traffic_with_a_former_bridge_address_needs_a_rule() -> Result<()> {
    let mut lab = start(Topology::BridgePlugin)?;
    for round in 0..2 {
        lab.cluster.host("node-1").netns().ip("addr add 10.244.1.77/24 dev cni0")?;
        let client = lab.cluster.host("shop/client");
        let pod = socket(client.netns(), SocketAddr::new(client.v4().into(), 5000))?;
        let server = socket(lab.cluster.host("node-1").netns(), "10.244.1.77:6000".parse()?)?;
        wait_until_passes(&pod, &server, true).with_context(|| format!("the bridge has the address, round {round}"))?;
        drop(server);

        lab.cluster.host("node-1").netns().ip("addr del 10.244.1.77/24 dev cni0")?;
        // This pod gets the address that the bridge had.
        lab.cluster.add_pod(PodSpec::new("blog/heir").number(77))?;
        let server = socket(lab.cluster.host("blog/heir").netns(), "10.244.1.77:6000".parse()?)?;
        wait_until_passes(&pod, &server, false).with_context(|| format!("a pod has the address, round {round}"))?;
        lab.expect("shop/client -x blog/heir 80/TCP\nblog/heir -x shop/client 80/TCP")?;
        lab.cluster.remove_pod("blog/heir")?;
    }
    Ok(())
}
