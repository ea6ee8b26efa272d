//! Open flows through a Service, while backends, policies and agents come and go.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_tests::flow::EchoConnection;
use netpol_tests::responses::UdpClient;
use netpol_tests::{Interconnect, Mode, Service, Topology, policy};

use super::Shape;
use super::shop::{Shop, number};

/// Long enough for TCP to send again.
const ECHO: Duration = Duration::from_secs(3);

/// How long nobody may answer for.
const SILENCE: Duration = Duration::from_millis(300);

const SHAPES: [Shape; 2] = [
    Shape { topology: Topology::Bridge, interconnect: Interconnect::Vxlan, mode: Mode::Iptables },
    Shape { topology: Topology::Routed, interconnect: Interconnect::Routes, mode: Mode::Nftables },
];

/// On this node and on the other.
const BACKENDS: [&str; 2] = ["shop/near", "shop/far"];

/// Who takes connections of the first family, by protocol.
fn frontends(service: u16) -> [SocketAddr; 2] {
    let at = Shop::cluster_ips(service);
    [at[0].1, at[1].1]
}

/// What the manifests say, and kube-proxy does, of the Service.
fn backends(shop: &Shop, names: &[&str]) -> Result<()> {
    let service = behind(shop, names);
    service.write_manifest(shop.cluster())?;
    shop.proxy.sync(&[service])
}

fn behind(shop: &Shop, names: &[&str]) -> Service {
    Shop::service(number::GOOD).backends(shop.cluster(), names)
}

/// A flow by TCP and one by UDP to each backend, through the Service.
fn open(shop: &Shop) -> Result<Vec<(&'static str, EchoConnection, UdpClient)>> {
    let [tcp, udp] = frontends(number::GOOD);
    let mut flows = Vec::new();
    for name in BACKENDS {
        backends(shop, &[name])?;
        shop.settle()?;
        let conversation = EchoConnection::open_at(shop.cluster(), "shop/client", name, tcp)?;
        let mut caller = UdpClient::new(shop.cluster(), "shop/client", udp)?;
        ensure!(caller.responder(ECHO)?.as_deref() == Some(name), "{name} does not answer");
        flows.push((name, conversation, caller));
    }
    Ok(flows)
}

#[test]
fn s21_s25_s26_an_open_flow_goes_on_while_it_is_allowed() -> Result<()> {
    SHAPES.iter().try_for_each(|&shape| goes_on(shape).with_context(|| format!("{shape:?}")))
}

fn goes_on(shape: Shape) -> Result<()> {
    let mut shop = Shop::open(shape)?;
    let mut flows = open(&shop)?;
    let mut go_on = |what: &str| -> Result<()> {
        for (name, conversation, caller) in &mut flows {
            ensure!(conversation.echoes(ECHO)?, "{name} by TCP stopped: {what}");
            let who = caller.responder(ECHO)?;
            ensure!(who.as_deref() == Some(*name), "{name} by UDP stopped, {who:?} answers: {what}");
        }
        Ok(())
    };
    for names in [&["shop/near", "shop/far"][..], &["shop/near"], &["shop/far", "shop/bad"], &["shop/near", "node-2"]] {
        backends(&shop, names)?;
        shop.settle()?;
        go_on(&format!("backends {names:?}"))?;
    }
    let wider = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: free}}}]}]}";
    shop.cluster().apply("second", &policy("shop/wider", wider))?;
    shop.settle()?;
    go_on("a policy more")?;
    shop.cluster().delete("second")?;
    shop.settle()?;
    go_on("a policy less")?;
    shop.lab.agent().crash()?;
    go_on("without an agent")?;
    shop.lab.agent().restart()?;
    go_on("a new agent")
}

#[test]
fn s22_s25_an_open_flow_stops_when_it_is_no_longer_allowed_on_a_bridge() -> Result<()> {
    stops(SHAPES[0])
}

#[test]
fn s22_s25_an_open_flow_stops_when_it_is_no_longer_allowed_routed() -> Result<()> {
    stops(SHAPES[1])
}

fn stops(shape: Shape) -> Result<()> {
    let mut shop = Shop::open(shape)?;
    shop.lab.cluster.edit_pod("shop/free", |pod| pod.labels("app=good"))?;
    // Those that are behind the Service when the others no longer are: all, some or none of them allowed, or nobody.
    for others in [&["shop/free"][..], &["shop/free", "shop/bad"], &["shop/bad"], &[]] {
        let mut flows = open(&shop)?;
        // They leave the Service; their flows stay open, as kube-proxy leaves them.
        behind(&shop, others).write_manifest(shop.cluster())?;
        shop.settle()?;
        for name in BACKENDS {
            shop.lab.cluster.edit_pod(name, |pod| pod.labels("app=bad"))?;
        }
        shop.settle()?;
        for (name, conversation, caller) in &mut flows {
            let went_on = |protocol| format!("{name} by {protocol} went on beside {others:?}");
            // TCP sends again.
            ensure!(!conversation.echoes(SILENCE)? && !conversation.echoes(SILENCE)?, went_on("TCP"));
            for _ in 0..3 {
                ensure!(caller.responder(SILENCE)?.is_none(), went_on("UDP"));
            }
        }
        for name in BACKENDS {
            shop.lab.cluster.edit_pod(name, |pod| pod.labels("app=good"))?;
        }
    }
    Ok(())
}

#[test]
fn s22_a_udp_flow_that_is_sent_elsewhere_is_judged_by_where_it_goes_now() -> Result<()> {
    SHAPES.iter().try_for_each(|&shape| sent_elsewhere(shape).with_context(|| format!("{shape:?}")))
}

/// Conntrack forgets a silent flow, and kube-proxy's rules choose anew for its next datagram.
fn sent_elsewhere(shape: Shape) -> Result<()> {
    const FORGET: &str = "netfilter/nf_conntrack_udp_timeout";
    let shop = Shop::open(shape)?;
    for node in shop.cluster().nodes() {
        node.netns().sysctl(&[(FORGET, "1")])?;
    }
    let everybody = ["shop/near", "shop/bad", "shop/far", "shop/worse", "node-1", "node-2"];
    behind(&shop, &everybody).write_manifest(shop.cluster())?;
    let [_, target] = frontends(number::GOOD);
    shop.proxy.sync(&[behind(&shop, &["shop/near"])])?;
    let mut caller = UdpClient::new(shop.cluster(), "shop/client", target)?;
    ensure!(caller.responder(ECHO)?.as_deref() == Some("shop/near"), "near does not answer");
    for name in ["shop/bad", "shop/far", "shop/worse", "node-1", "node-2", "shop/near"] {
        shop.proxy.sync(&[behind(&shop, &[name])])?;
        let expected = ["shop/near", "shop/far", "node-1"].contains(&name).then_some(name);
        std::thread::sleep(Duration::from_millis(1200));
        let who = caller.responder(if expected.is_some() { ECHO } else { SILENCE })?;
        ensure!(who.as_deref() == expected, "sent to {name}, and {who:?} answers");
        let sent: u64 = shop.proxy.sent()?.values().sum();
        ensure!(sent == 1, "{sent} flows were sent to {name}");
    }
    Ok(())
}
