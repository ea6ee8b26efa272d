//! A Service's own addresses.

use anyhow::{Context, Result, ensure};

use super::shop::{ALL, Shop, number};

pub(super) fn measure(shop: &Shop) -> Result<()> {
    for service in [number::GOOD, number::BAD, number::MIXED] {
        let at = Shop::cluster_ips(service);
        shop.through("shop/free", &at, Shop::backends(service)).with_context(|| format!("Service {service}"))?;
    }
    shop.through("shop/client", &Shop::cluster_ips(number::GOOD), &["shop/near", "shop/far"])
        .context("all backends")?;
    none(shop).context("no backend")?;
    some(shop).context("some backends")?;
    itself(shop).context("a pod behind its own Service")
}

/// It ends at the pod's interface: kube-proxy never sees it.
fn none(shop: &Shop) -> Result<()> {
    shop.nowhere("shop/client", &Shop::cluster_ips(number::BAD))?;
    for (_, target) in Shop::cluster_ips(number::BAD) {
        shop.denied_through(number::BAD, "no-backend", "shop/client", &target.ip().to_string())?;
    }
    Ok(())
}

/// Each connection is judged by where it was sent; the node's own processes are always allowed.
fn some(shop: &Shop) -> Result<()> {
    let allowed = ["shop/near", "shop/far", "node-1"];
    shop.through("shop/client", &Shop::cluster_ips(number::MIXED), &allowed)?;
    let denied: Vec<_> = ALL.into_iter().filter(|name| !allowed.contains(name)).collect();
    ensure!(denied.len() == 3, "{denied:?}");
    denied.iter().try_for_each(|backend| shop.denied_through(number::MIXED, "backend", "shop/client", backend))
}

/// No rule allows the pod to reach itself, and none is needed; a neighbour does not get in by that.
fn itself(shop: &Shop) -> Result<()> {
    let at = Shop::cluster_ips(number::CLIENT);
    shop.through("shop/client", &at, &["shop/client"])?;
    let twins = Shop::cluster_ips(number::TWINS);
    shop.through("shop/client", &twins, &["shop/client"]).context("beside a twin that no rule allows")
}
