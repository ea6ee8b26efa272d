//! `NodePorts` and `hostPorts`.

use anyhow::{Context, Result};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::ProbeResult::{Allowed, Dropped};
use netpol_tests::cluster::gateway;

use super::shop::{ALL, Shop, number, targets};

pub(super) fn check_all(shop: &Shop) -> Result<()> {
    local_node(shop).context("NodePorts of the pod's own node")?;
    other_node(shop).context("NodePorts of another node")?;
    host_ports(shop).context("hostPorts")
}

/// Traffic to the local node's addresses is always allowed. Traffic to the backends of its ports is not.
fn local_node(shop: &Shop) -> Result<()> {
    let gateway = gateway(1, shop.cluster().families());
    for addresses in [shop.cluster().host("node-1").addresses(), &gateway] {
        let at = |service| targets(addresses, &Shop::node_ports(service));
        shop.expect_backends("shop/free", &at(number::MIXED), &ALL)?;
        shop.expect_backends("shop/client", &at(number::MIXED), &["shop/near", "shop/far", "node-1"])?;
        shop.expect_backends("shop/client", &at(number::GUARDED), &[])?;
    }
    ["shop/bad", "shop/worse", "node-2"]
        .iter()
        .try_for_each(|backend| shop.wait_denied_through(number::MIXED, "backend-denied", "shop/client", backend))
}

/// The other node selects the backend. On this node, the selected backend is not known.
fn other_node(shop: &Shop) -> Result<()> {
    let at = |service| targets(shop.cluster().host("node-2").addresses(), &Shop::node_ports(service));
    shop.expect_backends("shop/free", &at(number::MIXED), &ALL)?;
    shop.expect_backends("shop/client", &at(number::GOOD), &["shop/near", "shop/far"])?;
    for (service, reason) in [(number::MIXED, "not-all-backends-allowed"), (number::BAD, "no-allowed-backend")] {
        shop.expect_dropped_before_proxy("shop/client", &at(service))?;
        shop.wait_denied_through(service, reason, "shop/client", "node-2")
            .with_context(|| format!("Service {service}"))?;
    }
    Ok(())
}

/// Tests hostPorts with rules as the CNI plugin portmap writes them.
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
