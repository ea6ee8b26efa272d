//! Services with a selector and no `EndpointSlice` in their manifests, and Services with host-network pods as backends.
//! As in all tests of [`Shop`], the pod `shop/client` may connect only to pods with the label `app=good`.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use anyhow::{Context, Result};
use netpol_tests::{Cluster, Interconnect, Mode, Topology, policy};

use super::Shape;
use super::shop::{Shop, service_number};

const SHAPE: Shape = Shape { topology: Topology::Bridge, interconnect: Interconnect::Vxlan, mode: Mode::Nftables };

/// Replaces a Service by one with this selector and without an `EndpointSlice`. Makes kube-proxy translate the
/// addresses of the Service to these backends.
fn set_selector(shop: &Shop, service: u16, label: &str, backends: &[&str]) -> Result<()> {
    let selecting = Shop::service(service).selecting(label).backends(shop.cluster(), backends);
    selecting.write_manifest(shop.cluster())?;
    shop.proxy.sync(&[selecting])
}

#[test]
fn s37_the_backends_of_a_service_without_slices_are_the_pods_that_it_selects() -> Result<()> {
    let mut shop = Shop::open(SHAPE)?;
    set_selector(&shop, service_number::GOOD, "app: good", &["shop/near", "shop/far"])?;
    shop.wait_applied()?;
    shop.expect_backends("shop/client", &Shop::cluster_ips(service_number::GOOD), &["shop/near", "shop/far"])?;
    // No backend is allowed. The packets are dropped at the sender's interface, so none reaches kube-proxy.
    set_selector(&shop, service_number::BAD, "app: bad", &["shop/bad", "shop/worse"])?;
    shop.wait_applied()?;
    shop.expect_dropped_before_proxy("shop/client", &Shop::cluster_ips(service_number::BAD))?;
    for (_, target) in Shop::cluster_ips(service_number::BAD) {
        shop.wait_denied_through(service_number::BAD, "no-allowed-backend", "shop/client", &target.ip().to_string())?;
    }
    // `shop/bad` gets other labels, so that `shop/client` may connect to it. This pod is now the only backend.
    shop.lab.cluster.edit_pod("shop/bad", |pod| pod.labels("app=good,tier=one"))?;
    set_selector(&shop, service_number::BAD, "tier: one", &["shop/bad"])?;
    shop.wait_applied()?;
    shop.expect_backends("shop/client", &Shop::cluster_ips(service_number::BAD), &["shop/bad"])
}

/// Writes the manifest of a host-network pod on a node.
fn write_host_network_pod(cluster: &Cluster, node: &str, labels: &str) -> Result<()> {
    let addresses: Vec<String> =
        cluster.host(node).addresses().iter().map(|address| format!("{{ip: '{address}'}}")).collect();
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{namespace: shop, name: on-{node}, labels: {{{labels}}}}}, \
         spec: {{nodeName: {node}, hostNetwork: true, containers: []}}, \
         status: {{phase: Running, podIPs: [{}]}}}}",
        addresses.join(", ")
    );
    cluster.manifests().write(&format!("on-{node}.yaml"), &pod)
}

#[test]
fn s05_s22_host_network_backends_are_evaluated_by_their_nodes_addresses() -> Result<()> {
    let shop = Shop::open(SHAPE)?;
    write_host_network_pod(shop.cluster(), "node-2", "app: good, net: host")?;
    set_selector(&shop, service_number::GOOD, "net: host", &["node-2"])?;
    shop.wait_applied()?;
    // The rule of `shop/client` allows pods with these labels, but a selector never matches a host-network pod.
    shop.expect_dropped_before_proxy("shop/client", &Shop::cluster_ips(service_number::GOOD))
        .context("a host-network backend with labels that a rule allows")?;
    shop.wait_denied_through(service_number::GOOD, "no-allowed-backend", "shop/client", "10.96.0.10")?;
    let blocks: Vec<String> = shop.cluster().host("node-2").addresses().iter().map(block).collect();
    let to_node = policy(
        "shop/client-to-node",
        &format!(
            "{{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], egress: [{{to: [{}]}}]}}",
            blocks.join(", ")
        ),
    );
    shop.cluster().apply("second", &to_node)?;
    shop.wait_applied()?;
    shop.expect_backends("shop/client", &Shop::cluster_ips(service_number::GOOD), &["node-2"])
        .context("a host-network backend on a node that a rule allows")?;
    // A host-network pod on the client's node has the address of the local node, which needs no rule.
    shop.cluster().delete("second")?;
    write_host_network_pod(shop.cluster(), "node-1", "app: bad, net: here")?;
    set_selector(&shop, service_number::GOOD, "net: here", &["node-1"])?;
    shop.wait_applied()?;
    shop.expect_backends("shop/client", &Shop::cluster_ips(service_number::GOOD), &["node-1"])
        .context("a host-network backend on the client's node")
}

/// Returns a peer with only this address.
fn block(address: &std::net::IpAddr) -> String {
    format!("{{ipBlock: {{cidr: '{address}/{}'}}}}", if address.is_ipv4() { 32 } else { 128 })
}
