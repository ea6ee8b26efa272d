//! Connections through a `NodePort` are masqueraded with the node's address. They are not evaluated as traffic from the
//! node.

use anyhow::{Context, Result};

use super::shop::{Shop, service_number, targets};

pub(super) fn check_all(shop: &Shop) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let at = |service| targets(shop.cluster().host(node).addresses(), &Shop::node_ports(service));
        for from in ["outside", "shop/stranger", "shop/free"] {
            shop.expect_backends(from, &at(service_number::GOOD), &["shop/near", "shop/far"])?;
        }
        let to_isolated_pods = [at(service_number::GUARDED), at(service_number::VAULT)].concat();
        // Masquerading hides the visitor's address, so rules for the visitor's labels do not match.
        for from in ["outside", "shop/stranger", "shop/free", "shop/visitor"] {
            shop.expect_backends(from, &to_isolated_pods, &[]).with_context(|| format!("{from} through {node}"))?;
        }
        // Now a process of `node` connects to a NodePort of `node`. If the pod is on `node`, the connection is allowed:
        // it is traffic between a pod and its node. If the pod is on the other node, the connection needs a rule, and
        // there is none.
        for (service, pod, pods_node) in
            [(service_number::GUARDED, "shop/guarded", "node-1"), (service_number::VAULT, "shop/vault", "node-2")]
        {
            let allowed: &[&str] = if node == pods_node { &[pod] } else { &[] };
            shop.expect_backends(node, &at(service), allowed)
                .with_context(|| format!("{node} through its own port to {pod}"))?;
        }
    }
    // Connections through a cluster IP are not masqueraded.
    for (service, pod) in [(service_number::GUARDED, "shop/guarded"), (service_number::VAULT, "shop/vault")] {
        let at = Shop::cluster_ips(service);
        shop.expect_backends("shop/visitor", &at, &[pod])?;
        shop.expect_backends("shop/free", &at, &[])?;
    }
    shop.wait_denied("no-rule", "shop/free", "shop/guarded")
}
