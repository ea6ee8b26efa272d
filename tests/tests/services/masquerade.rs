//! What comes by a `NodePort` goes in its node's name. It is not the node.

use anyhow::{Context, Result};

use super::shop::{Shop, number, targets};

pub(super) fn measure(shop: &Shop) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let at = |service| targets(shop.cluster().host(node).addresses(), &Shop::node_ports(service));
        for from in ["outside", "shop/stranger", "shop/free"] {
            shop.through(from, &at(number::GOOD), &["shop/near", "shop/far"])?;
        }
        let isolated = [at(number::GUARDED), at(number::VAULT)].concat();
        // The visitor's labels do not come along.
        for from in ["outside", "shop/stranger", "shop/free", "shop/visitor"] {
            shop.through(from, &isolated, &[]).with_context(|| format!("{from} by {node}"))?;
        }
        // Another node's own processes are as foreign as what it forwards.
        for (service, pod, pods_node) in
            [(number::GUARDED, "shop/guarded", "node-1"), (number::VAULT, "shop/vault", "node-2")]
        {
            let allowed: &[&str] = if node == pods_node { &[pod] } else { &[] };
            shop.through(node, &at(service), allowed).with_context(|| format!("{node} by its own port to {pod}"))?;
        }
    }
    for (service, pod) in [(number::GUARDED, "shop/guarded"), (number::VAULT, "shop/vault")] {
        let at = Shop::cluster_ips(service);
        shop.through("shop/visitor", &at, &[pod])?;
        shop.through("shop/free", &at, &[])?;
    }
    shop.denied("no-rule", "shop/free", "shop/guarded")
}
