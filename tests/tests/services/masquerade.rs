//! What comes by a `NodePort` goes in its node's name. It is not the node.

use anyhow::{Context, Result};

use super::shop::{Shop, number, targets};

pub(super) fn measure(shop: &Shop) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let at = |service| targets(shop.cluster().host(node).addresses(), &Shop::node_ports(service));
        for from in ["outside", "shop/stranger", "shop/free"] {
            shop.through(from, &at(number::GOOD), &["shop/near", "shop/far"])?;
            shop.through(from, &at(number::GUARDED), &[]).with_context(|| format!("{from} by {node}"))?;
        }
        // Its labels do not come along.
        shop.through("shop/visitor", &at(number::GUARDED), &[]).with_context(|| format!("visitor by {node}"))?;
        // Another node's own processes are as foreign as what it forwards.
        let of_node: &[&str] = if node == "node-1" { &["shop/guarded"] } else { &[] };
        shop.through(node, &at(number::GUARDED), of_node).with_context(|| format!("{node} by its own port"))?;
    }
    let at = Shop::cluster_ips(number::GUARDED);
    shop.through("shop/visitor", &at, &["shop/guarded"])?;
    shop.through("shop/free", &at, &[])?;
    shop.denied("no-rule", "shop/free", "shop/guarded")
}
