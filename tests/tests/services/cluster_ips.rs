//! Connections to cluster IPs of Services. Rules allow `shop/client` to connect to all backends of
//! `service_number::GOOD`, to no backend of `service_number::BAD`, and to some backends of `service_number::MIXED`. No
//! policy isolates `shop/free` for egress.

use anyhow::{Context, Result, ensure};

use super::shop::{ALL_BACKENDS, Shop, service_number};

pub(super) fn check_all(shop: &Shop) -> Result<()> {
    for service in [service_number::GOOD, service_number::BAD, service_number::MIXED] {
        let at = Shop::cluster_ips(service);
        shop.expect_backends("shop/free", &at, Shop::backends(service))
            .with_context(|| format!("Service {service}"))?;
    }
    shop.expect_backends("shop/client", &Shop::cluster_ips(service_number::GOOD), &["shop/near", "shop/far"])
        .context("all backends")?;
    no_backend_allowed(shop).context("no backend")?;
    some_backends_allowed(shop).context("some backends")?;
    hairpin(shop).context("a pod that is a backend of its own Service")
}

/// Traffic is dropped at the client's interface, so it never reaches kube-proxy.
fn no_backend_allowed(shop: &Shop) -> Result<()> {
    shop.expect_dropped_before_proxy("shop/client", &Shop::cluster_ips(service_number::BAD))?;
    for (_, target) in Shop::cluster_ips(service_number::BAD) {
        shop.wait_denied_through(service_number::BAD, "no-allowed-backend", "shop/client", &target.ip().to_string())?;
    }
    Ok(())
}

/// Each connection is evaluated post-DNAT. Backends that are processes of the client's node are always allowed.
fn some_backends_allowed(shop: &Shop) -> Result<()> {
    let allowed = ["shop/near", "shop/far", "node-1"];
    shop.expect_backends("shop/client", &Shop::cluster_ips(service_number::MIXED), &allowed)?;
    let denied: Vec<_> = ALL_BACKENDS.into_iter().filter(|name| !allowed.contains(name)).collect();
    ensure!(denied.len() == 3, "{denied:?}");
    denied.iter().try_for_each(|backend| {
        shop.wait_denied_through(service_number::MIXED, "backend-denied", "shop/client", backend)
    })
}

/// Without a rule, a pod can connect to itself through a Service, but not to the other backend of the same Service.
fn hairpin(shop: &Shop) -> Result<()> {
    let at = Shop::cluster_ips(service_number::CLIENT);
    shop.expect_backends("shop/client", &at, &["shop/client"])?;
    let twins = Shop::cluster_ips(service_number::TWINS);
    shop.expect_backends("shop/client", &twins, &["shop/client"]).context("with a second backend that no rule allows")
}
