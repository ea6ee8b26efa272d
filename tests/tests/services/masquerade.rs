//! Connections through a `NodePort` are masqueraded with the node's address. They are not evaluated as traffic from the
//! node.

use anyhow::{Context, Result};

use super::shop::{Shop, number, targets};

pub(super) fn measure(shop: &Shop) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let at = |service| targets(shop.cluster().host(node).addresses(), &Shop::node_ports(service));
        for from in ["outside", "shop/stranger", "shop/free"] {
            shop.through(from, &at(number::GOOD), &["shop/near", "shop/far"])?;
        }
        let isolated = [at(number::GUARDED), at(number::VAULT)].concat();
        // Masquerading hides the visitor's address, so its labels do not count.
        for from in ["outside", "shop/stranger", "shop/free", "shop/visitor"] {
            shop.through(from, &isolated, &[]).with_context(|| format!("{from} through {node}"))?;
        }
        // Only the local node's own processes are allowed: another node's are evaluated like the traffic that it
        // forwards.
        for (service, pod, pods_node) in
            [(number::GUARDED, "shop/guarded", "node-1"), (number::VAULT, "shop/vault", "node-2")]
        {
            let allowed: &[&str] = if node == pods_node { &[pod] } else { &[] };
            shop.through(node, &at(service), allowed)
                .with_context(|| format!("{node} through its own port to {pod}"))?;
        }
    }
    for (service, pod) in [(number::GUARDED, "shop/guarded"), (number::VAULT, "shop/vault")] {
        let at = Shop::cluster_ips(service);
        shop.through("shop/visitor", &at, &[pod])?;
        shop.through("shop/free", &at, &[])?;
    }
    shop.denied("no-rule", "shop/free", "shop/guarded")
}
