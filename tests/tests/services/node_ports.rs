//! Tests of `NodePorts` and `hostPorts`, with clients on the first node. Policies allow the pod `client` to connect
//! only to `near` and `far`. No policy isolates the pod `free`. [`Shop`] and [`service_number`] describe all pods
//! and Services.

use anyhow::{Context, Result};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::ProbeResult::{Allowed, Dropped};
use netpol_tests::cluster::gateway;

use super::shop::{ALL_BACKENDS, Shop, service_number, targets};

pub(super) fn check_all(shop: &Shop) -> Result<()> {
    local_node(shop).context("NodePorts of the pod's own node")?;
    other_node(shop).context("NodePorts of another node")?;
    host_ports(shop).context("hostPorts")
}

/// Connects to `NodePorts` at the addresses of the local node. Each packet is evaluated post-DNAT, by the backend that
/// kube-proxy selects. The backend `node-1` is the local node, and traffic with it is always allowed.
fn local_node(shop: &Shop) -> Result<()> {
    let gateway = gateway(1, shop.cluster().families());
    for addresses in [shop.cluster().host("node-1").addresses(), &gateway] {
        let at = |service| targets(addresses, &Shop::node_ports(service));
        shop.expect_backends("shop/free", &at(service_number::MIXED), &ALL_BACKENDS)?;
        shop.expect_backends("shop/client", &at(service_number::MIXED), &["shop/near", "shop/far", "node-1"])?;
        shop.expect_backends("shop/client", &at(service_number::GUARDED), &[])?;
    }
    ["shop/bad", "shop/worse", "node-2"].iter().try_for_each(|backend| {
        shop.wait_denied_through(service_number::MIXED, "backend-denied", "shop/client", backend)
    })
}

/// Connects to `NodePorts` at the addresses of the other node. That node selects the backend, so the client's node
/// allows the connection only if all backends are allowed.
fn other_node(shop: &Shop) -> Result<()> {
    let at = |service| targets(shop.cluster().host("node-2").addresses(), &Shop::node_ports(service));
    shop.expect_backends("shop/free", &at(service_number::MIXED), &ALL_BACKENDS)?;
    shop.expect_backends("shop/client", &at(service_number::GOOD), &["shop/near", "shop/far"])?;
    for (service, reason) in
        [(service_number::MIXED, "not-all-backends-allowed"), (service_number::BAD, "no-allowed-backend")]
    {
        shop.expect_dropped_before_proxy("shop/client", &at(service))?;
        shop.wait_denied_through(service, reason, "shop/client", "node-2")
            .with_context(|| format!("Service {service}"))?;
    }
    Ok(())
}

/// Connects to hostPorts. The CNI plugin portmap has written the NAT rules on the nodes. Each row has the node, the
/// hostPort, the pod that has this hostPort, and the expected result for `client`.
fn host_ports(shop: &Shop) -> Result<()> {
    let rows = [
        ("node-1", 8081, "shop/near", Allowed),
        ("node-1", 8082, "shop/bad", Dropped),
        ("node-2", 8083, "shop/far", Allowed),
        ("node-2", 8084, "shop/worse", Dropped),
    ];
    for (node, port, to, expected) in rows {
        for address in shop.cluster().host(node).addresses() {
            let address = address.to_string();
            for protocol in [Tcp, Udp] {
                let target = format!("{to} at {address} {port}/{}", protocol.name());
                let from_free = shop.lab.try_at("shop/free", to, &address, protocol, port)?;
                assert_eq!(from_free, Allowed, "shop/free to {target}");
                let from_client = shop.lab.try_at("shop/client", to, &address, protocol, port)?;
                assert_eq!(from_client, expected, "shop/client to {target}");
            }
        }
    }
    Ok(())
}
