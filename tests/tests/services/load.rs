//! Backends change while a pod opens many connections.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use netpol_tests::responses::connect_all;
use netpol_tests::{Interconnect, Mode, PodSpec, Topology};

use super::Shape;
use super::shop::{ALL_BACKENDS, Shop, service_number};

#[test]
fn s22_s24_no_denied_backend_ever_replies_on_a_bridge() -> Result<()> {
    check_replies(Shape { topology: Topology::Bridge, interconnect: Interconnect::Vxlan, mode: Mode::Nftables })
}

#[test]
fn s22_s24_no_denied_backend_ever_replies_without_a_bridge() -> Result<()> {
    check_replies(Shape { topology: Topology::Routed, interconnect: Interconnect::Routes, mode: Mode::Iptables })
}

/// The number of the Service with backends that change.
const SERVICE: u16 = service_number::MIXED;

/// The hosts that may reply to `client`: the pods with `app=good`, and the local node.
const ALLOWED: [&str; 4] = ["shop/near", "shop/far", "node-1", DELETED];

/// An allowed backend that is deleted.
const DELETED: &str = "shop/leaver";
/// A pod that is not an allowed backend and reuses the addresses of [`DELETED`].
const REUSING: &str = "shop/heir";
/// The last part of these addresses.
const LAST_PART: u8 = 77;

/// How long each state of kube-proxy's rules and of the manifests lasts.
const STATE_TIME: Duration = Duration::from_millis(400);

/// The backends in each round.
const ROUNDS: [&[&str]; 7] = [
    &["shop/near", "shop/bad"],
    &["shop/bad"],
    &["shop/near", "shop/far"],
    &[],
    &["shop/far", "shop/worse", "node-1", "node-2"],
    &["shop/worse"],
    &ALL_BACKENDS,
];

fn check_replies(shape: Shape) -> Result<()> {
    let mut shop = Shop::open(shape)?;
    let answered = under_load(&shop, || {
        ROUNDS.iter().enumerate().try_for_each(|(round, names)| change_backends(&shop, names, round % 2 == 0))
    })?;
    ensure!(answered > 100, "only {answered} connections got a reply");

    shop.lab.cluster.add_pod(PodSpec::new(DELETED).labels("app=good").number(LAST_PART))?;
    let answered = under_load(&shop, || change_backends(&shop, &[DELETED], true))?;
    ensure!(answered > 0, "no connection got a reply from {DELETED}");
    // kube-proxy's rules and the Service's manifest still contain the deleted pod's addresses. Another pod reuses these
    // addresses.
    shop.lab.cluster.remove_pod(DELETED)?;
    shop.lab.cluster.add_pod_without_manifest(PodSpec::new(REUSING).labels("app=bad").number(LAST_PART))?;
    let answered = under_load(&shop, || {
        std::thread::sleep(STATE_TIME);
        shop.cluster().write_manifest(REUSING)?;
        std::thread::sleep(STATE_TIME);
        Ok(())
    })?;
    ensure!(answered == 0, "{answered} connections got a reply, but the only backend is not allowed");
    // Pod `free` may connect to any address. If `REUSING` replies to it, kube-proxy still sends connections to
    // `REUSING`. So the connections of `client` got no reply because they were denied.
    shop.expect_backends("shop/free", &Shop::cluster_ips(SERVICE), &[REUSING])
}

/// Changes the backends of the Service first in kube-proxy's rules and then in the agent's manifests, or the other way
/// round.
fn change_backends(shop: &Shop, names: &[&str], kube_proxy_first: bool) -> Result<()> {
    let service = Shop::service(SERVICE).backends(shop.cluster(), names);
    for change_kube_proxy in [kube_proxy_first, !kube_proxy_first] {
        if change_kube_proxy {
            shop.proxy.sync(std::slice::from_ref(&service))?;
        } else {
            service.write_manifest(shop.cluster())?;
        }
        std::thread::sleep(STATE_TIME);
    }
    Ok(())
}

/// Opens connections from `client` while `work` runs, and returns how many got a reply. Fails if a reply is from a host
/// that is not allowed.
fn under_load(shop: &Shop, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| connect_until(shop, &done));
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let answered = connecting.join().expect("the connecting thread panicked");
        worked.and(answered)
    })
}

fn connect_until(shop: &Shop, done: &AtomicBool) -> Result<u64> {
    let mut answered = 0;
    while !done.load(Ordering::Relaxed) {
        for found in connect_all(shop.cluster(), "shop/client", &Shop::cluster_ips(SERVICE), 24)? {
            for (name, count) in found.by_host {
                ensure!(ALLOWED.contains(&name.as_str()), "{name} is not allowed and replied {count} times");
                answered += count;
            }
        }
    }
    Ok(answered)
}
