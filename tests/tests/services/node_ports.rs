//! `NodePorts` and `hostPorts`.

use anyhow::{Context, Result};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::Outcome;
use netpol_tests::cluster::gateway;

use super::shop::{LOCAL, Shop, number, targets};

pub(super) fn measure(shop: &Shop) -> Result<()> {
    own_node(shop).context("NodePorts of the pod's own node")?;
    host_ports(shop).context("hostPorts")
}

/// The node's addresses are always allowed; where its ports lead is not.
fn own_node(shop: &Shop) -> Result<()> {
    let gateway = gateway(1, shop.cluster().families());
    for addresses in [shop.cluster().host("node-1").addresses(), &gateway] {
        let at = |service| targets(addresses, &Shop::node_ports(service));
        shop.through("shop/free", &at(number::LOCAL), &LOCAL)?;
        shop.through("shop/client", &at(number::LOCAL), &["shop/near", "node-1"])?;
        shop.through("shop/client", &at(number::GUARDED), &[])?;
    }
    shop.denied("backend", "shop/client", "shop/bad")
}

/// As the plugin portmap writes them.
fn host_ports(shop: &Shop) -> Result<()> {
    for address in shop.cluster().host("node-1").addresses() {
        let address = address.to_string();
        for protocol in [Tcp, Udp] {
            for (to, port, expected) in [("shop/near", 8081, Outcome::Allowed), ("shop/bad", 8082, Outcome::Dropped)] {
                let from_anyone = shop.lab.try_at("shop/free", to, &address, protocol, port)?;
                assert_eq!(from_anyone, Outcome::Allowed, "free to {to} at {address} {port}/{}", protocol.name());
                let outcome = shop.lab.try_at("shop/client", to, &address, protocol, port)?;
                assert_eq!(outcome, expected, "client to {to} at {address} {port}/{}", protocol.name());
            }
        }
    }
    Ok(())
}
