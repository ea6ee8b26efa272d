//! Egress through Services with real packets. The tests write kube-proxy's rules themselves. Backends are pods on the
//! local node, pods on another node (reached by VXLAN, a `tun` device or a plain route), and host-network processes.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

mod cluster_ips;
mod flows;
mod hairpin;
mod load;
mod masquerade;
mod node_ports;
mod selected;
mod shop;

use anyhow::{Context, Result};
use netpol_tests::{Interconnect, Mode, Topology};

use shop::Shop;

/// The properties of a cluster that affect the path of a packet.
#[derive(Clone, Copy, Debug)]
struct Shape {
    topology: Topology,
    interconnect: Interconnect,
    /// kube-proxy's mode.
    mode: Mode,
}

/// Runs all checks that need no change in the cluster.
fn check_all(topology: Topology, interconnect: Interconnect, mode: Mode) -> Result<()> {
    let shop = Shop::open(Shape { topology, interconnect, mode })?;
    let cases: [fn(&Shop) -> Result<()>; 4] =
        [cluster_ips::check_all, node_ports::check_all, masquerade::check_all, hairpin::check_all];
    cases.iter().try_for_each(|case| case(&shop)).with_context(|| format!("log of the agent:\n{}", shop.agent().log()))
}

// Every pair of values of two fields of `Shape` is tested, but not every combination of three values. The exception is
// `Interconnect::Tun`: it has only one test.

#[test]
fn s15_s21_s22_s23_on_a_bridge_with_vxlan_and_nftables() -> Result<()> {
    check_all(Topology::Bridge, Interconnect::Vxlan, Mode::Nftables)
}

#[test]
fn s15_s21_s22_s23_on_a_bridge_with_routes_and_iptables() -> Result<()> {
    check_all(Topology::Bridge, Interconnect::Routes, Mode::Iptables)
}

#[test]
fn s15_s21_s22_s23_routed_with_vxlan_and_iptables() -> Result<()> {
    check_all(Topology::Routed, Interconnect::Vxlan, Mode::Iptables)
}

#[test]
fn s15_s21_s22_s23_on_a_bridge_with_a_tunnel_without_link_headers() -> Result<()> {
    check_all(Topology::Bridge, Interconnect::Tun, Mode::Nftables)
}

#[test]
fn s15_s21_s22_s23_routed_with_routes_and_nftables() -> Result<()> {
    check_all(Topology::Routed, Interconnect::Routes, Mode::Nftables)
}
