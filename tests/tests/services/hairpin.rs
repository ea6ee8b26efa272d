//! A pod reaches itself through its own Service: sent back masqueraded, to the interface it came from.

use anyhow::{Context, Result};
use netpol_tests::proxy::see_bridged;

use super::shop::{Shop, number, targets};

pub(super) fn measure(shop: &Shop) -> Result<()> {
    let node = shop.cluster().host("node-1");
    let seen: &[bool] = if shop.cluster().topology().is_bridged() { &[false, true] } else { &[true] };
    for &seen in seen {
        see_bridged(node.netns(), seen)?;
        let own = Shop::cluster_ips(number::GUARDED);
        let by_node = targets(node.addresses(), &Shop::node_ports(number::GUARDED));
        for at in [&own, &by_node] {
            shop.through("shop/guarded", at, &["shop/guarded"]).with_context(|| format!("bridge-nf {seen}"))?;
        }
        // Masqueraded in the same way, and somebody else.
        shop.through("shop/free", &by_node, &[]).with_context(|| format!("bridge-nf {seen}"))?;
    }
    Ok(())
}
