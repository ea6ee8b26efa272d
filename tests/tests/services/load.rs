//! Backends that come and go while many connect.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use netpol_tests::responses::connect_all;
use netpol_tests::{Interconnect, Mode, PodSpec, Topology};

use super::Shape;
use super::shop::{ALL, Shop, number};

#[test]
fn s22_s24_no_denied_backend_ever_answers_on_a_bridge() -> Result<()> {
    measure(Shape { topology: Topology::Bridge, interconnect: Interconnect::Vxlan, mode: Mode::Nftables })
}

#[test]
fn s22_s24_no_denied_backend_ever_answers_routed() -> Result<()> {
    measure(Shape { topology: Topology::Routed, interconnect: Interconnect::Routes, mode: Mode::Iptables })
}

/// Who may answer the client.
const ALLOWED: [&str; 4] = ["shop/near", "shop/far", "node-1", LEAVER];

/// An allowed backend, and one that is not, which has its address later.
const LEAVER: &str = "shop/leaver";
const HEIR: &str = "shop/heir";
const NUMBER: u8 = 77;

/// How long each state of things lasts.
const WHILE: Duration = Duration::from_millis(400);

/// Backends, one set after the other.
const ROUNDS: [&[&str]; 7] = [
    &["shop/near", "shop/bad"],
    &["shop/bad"],
    &["shop/near", "shop/far"],
    &[],
    &["shop/far", "shop/worse", "node-1", "node-2"],
    &["shop/worse"],
    &ALL,
];

fn measure(shape: Shape) -> Result<()> {
    let mut shop = Shop::open(shape)?;
    let answered = under_load(&shop, || {
        ROUNDS.iter().enumerate().try_for_each(|(round, names)| change(&shop, names, round % 2 == 0))
    })?;
    ensure!(answered > 100, "{answered} connections were answered");

    shop.lab.cluster.add_pod(PodSpec::new(LEAVER).labels("app=good").number(NUMBER))?;
    let answered = under_load(&shop, || change(&shop, &[LEAVER], true))?;
    ensure!(answered > 0, "nobody was answered by {LEAVER}");
    // Rules and manifests still name its address.
    shop.lab.cluster.remove_pod(LEAVER)?;
    shop.lab.cluster.add_pod_without_manifest(PodSpec::new(HEIR).labels("app=bad").number(NUMBER))?;
    let answered = under_load(&shop, || {
        std::thread::sleep(WHILE);
        shop.cluster().write_manifest(HEIR)?;
        std::thread::sleep(WHILE);
        Ok(())
    })?;
    ensure!(answered == 0, "{answered} connections were answered at an address of one who is not allowed");
    shop.through("shop/free", &Shop::cluster_ips(number::MIXED), &[HEIR])
}

/// Changes what is behind the Service: what kube-proxy does, and what the agent knows, one earlier than the other.
fn change(shop: &Shop, names: &[&str], rules_first: bool) -> Result<()> {
    let service = Shop::service(number::MIXED).backends(shop.cluster(), names);
    for rules in [rules_first, !rules_first] {
        if rules {
            shop.proxy.sync(std::slice::from_ref(&service))?;
        } else {
            service.write_manifest(shop.cluster())?;
        }
        std::thread::sleep(WHILE);
    }
    Ok(())
}

/// How many connections were answered while something else is done, each by somebody who is allowed.
fn under_load(shop: &Shop, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(shop, &done));
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let answered = asking.join().expect("who asks does not panic");
        worked.and(answered)
    })
}

fn ask_until(shop: &Shop, done: &AtomicBool) -> Result<u64> {
    let mut answered = 0;
    while !done.load(Ordering::Relaxed) {
        for found in connect_all(shop.cluster(), "shop/client", &Shop::cluster_ips(number::MIXED), 24)? {
            for (name, count) in found.by_host {
                ensure!(ALLOWED.contains(&name.as_str()), "{name} answered {count} times");
                answered += count;
            }
        }
    }
    Ok(answered)
}
