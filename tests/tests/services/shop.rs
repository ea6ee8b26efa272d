//! A cluster with Services, and who answers through them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol;
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::lab::TIMEOUT;
use netpol_tests::responses::{Responses, connect_all};
use netpol_tests::{Agent, AgentOptions, Cluster, Denied, Families, KubeProxy, Lab, PodSpec, Service, policy};

use super::Shape;

/// How many connections are made to each frontend: of six backends, one is not chosen in one of 6,300 tries; then there are
/// others.
const TIMES: usize = 48;

/// What all backends serve, and the ports of the Services that lead there.
pub(super) const PORTS: [(Protocol, u16, u16); 2] = [(Tcp, 8080, 80), (Udp, 8053, 53)];

/// Everybody who may be behind a Service.
pub(super) const ALL: [&str; 6] = ["shop/near", "shop/bad", "shop/far", "shop/worse", "node-1", "node-2"];

/// Two nodes, an agent on each. `client` may open connections to `app=good` only, all others to anyone; `guarded`, and `vault` on the
/// other node, take them from `app=visitor` only.
pub(super) struct Shop {
    /// On the second node; gone before the cluster is.
    _far: Agent,
    /// With the agent on the first.
    pub(super) lab: Lab,
    pub(super) proxy: KubeProxy,
    rounds: AtomicU32,
}

fn pods(shape: Shape) -> Result<Cluster> {
    let mut cluster = Cluster::builder()
        .topology(shape.topology)
        .interconnect(shape.interconnect)
        .families(Families::Dual)
        .nodes(2)
        .pods(&[("shop/client", "app=client"), ("shop/free", "app=free"), ("shop/guarded", "app=guarded")])
        .pods(&[("shop/visitor", "app=visitor")])
        .pod(PodSpec::new("shop/near").labels("app=good").host_port(Tcp, 80, 8081).host_port(Udp, 53, 8081))
        .pod(PodSpec::new("shop/bad").labels("app=bad").host_port(Tcp, 80, 8082).host_port(Udp, 53, 8082))
        .pod(PodSpec::new("shop/far").labels("app=good").node(2).host_port(Tcp, 80, 8083).host_port(Udp, 53, 8083))
        .pod(PodSpec::new("shop/worse").labels("app=bad").node(2).host_port(Tcp, 80, 8084).host_port(Udp, 53, 8084))
        .pod(PodSpec::new("shop/vault").labels("app=guarded").node(2))
        .pod(PodSpec::new("shop/stranger").labels("app=free").node(2))
        .build()?;
    for node in ["node-1", "node-2"] {
        cluster.serve_at(node, &[(Tcp, 80), (Udp, 53)])?;
    }
    for pod in ["shop/near", "shop/bad", "shop/far", "shop/worse"] {
        cluster.map_host_ports(pod)?;
    }
    Ok(cluster)
}

/// `client` goes out to good backends at the ports that they serve.
fn client_to_good() -> String {
    policy(
        "shop/client",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],
          egress: [{to: [{podSelector: {matchLabels: {app: good}}}], ports: [{port: 80}, {protocol: UDP, port: 53}]}]}",
    )
}

fn guarded_from_visitor() -> String {
    policy(
        "shop/guarded",
        "{podSelector: {matchLabels: {app: guarded}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: visitor}}}]}]}",
    )
}

fn addresses(number: u16) -> [IpAddr; 2] {
    let [_, last] = number.to_be_bytes();
    [Ipv4Addr::new(10, 96, 0, last).into(), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number).into()]
}

const fn node_port(number: u16, protocol: Protocol) -> u16 {
    30000 + number * 10 + protocol.number() as u16 % 10
}

/// The Services there are, by number.
pub(super) mod number {
    /// All of its backends are good.
    pub(crate) const GOOD: u16 = 10;
    /// None is.
    pub(crate) const BAD: u16 = 11;
    /// Everybody is behind it.
    pub(crate) const MIXED: u16 = 12;
    /// The guarded pod alone.
    pub(crate) const GUARDED: u16 = 13;
    /// The client alone.
    pub(crate) const CLIENT: u16 = 14;
    /// The vault alone, on the other node.
    pub(crate) const VAULT: u16 = 16;
    /// The client, and one that it may not connect to.
    pub(crate) const TWINS: u16 = 15;
}

/// Their names and backends.
const SERVICES: [(u16, &str, &[&str]); 7] = [
    (number::GOOD, "shop/good", &["shop/near", "shop/far"]),
    (number::BAD, "shop/bad", &["shop/bad", "shop/worse"]),
    (number::MIXED, "shop/mixed", &ALL),
    (number::GUARDED, "shop/guarded", &["shop/guarded"]),
    (number::VAULT, "shop/vault", &["shop/vault"]),
    (number::CLIENT, "shop/client", &["shop/client"]),
    (number::TWINS, "shop/twins", &["shop/client", "shop/bad"]),
];

/// The Service with this number: at an address of each family, and at ports of every node.
fn service(number: u16, name: &str) -> Service {
    let base = Service::new(name, &addresses(number));
    PORTS.iter().fold(base, |service, &(protocol, port, target)| {
        service.node_port(protocol, port, target, node_port(number, protocol))
    })
}

fn entry(service: u16) -> (u16, &'static str, &'static [&'static str]) {
    let found = SERVICES.iter().find(|(number, ..)| *number == service);
    *found.unwrap_or_else(|| panic!("no Service {service}"))
}

impl Shop {
    /// The agents have all objects from the start.
    pub(super) fn open(shape: Shape) -> Result<Self> {
        Self::open_with(shape, &[])
    }

    /// The same, with further arguments for the agents.
    pub(super) fn open_with(shape: Shape, arguments: &[&str]) -> Result<Self> {
        let cluster = pods(shape)?;
        let proxy = KubeProxy::start(&cluster, shape.mode)?;
        let services = SERVICES.map(|(number, name, backends)| service(number, name).backends(&cluster, backends));
        proxy.sync(&services)?;
        services.iter().try_for_each(|service| service.write_manifest(&cluster))?;
        cluster.apply("first", &[client_to_good(), guarded_from_visitor()].concat())?;
        // Both at once.
        let mut agents =
            [1, 2].map(|node| Agent::prepare(&cluster, AgentOptions::default().node(node).arguments(arguments)));
        for agent in agents.iter_mut().flatten() {
            agent.launch()?;
        }
        let [near, far] = agents;
        let (mut agent, mut far) = (near?, far?);
        agent.wait_ready()?;
        far.wait_ready()?;
        Ok(Self { _far: far, lab: Lab::of(cluster, agent), proxy, rounds: AtomicU32::new(0) })
    }

    /// A Service of [`number`], whose backends are to be chosen.
    ///
    /// # Panics
    /// Where there is none of this number.
    pub(super) fn service(number: u16) -> Service {
        service(number, entry(number).1)
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.lab.cluster
    }

    pub(super) fn agent(&self) -> &Agent {
        self.lab.agent_ref()
    }

    /// The frontends at a Service's own addresses.
    pub(super) fn cluster_ips(service: u16) -> Vec<(Protocol, SocketAddr)> {
        targets(&addresses(service), &PORTS.map(|(protocol, port, _)| (protocol, port)))
    }

    /// Who is behind a Service.
    ///
    /// # Panics
    /// Where there is no Service of this number.
    pub(super) fn backends(service: u16) -> &'static [&'static str] {
        entry(service).2
    }

    /// The ports that every node has for a Service.
    pub(super) fn node_ports(service: u16) -> [(Protocol, u16); 2] {
        PORTS.map(|(protocol, ..)| (protocol, node_port(service, protocol)))
    }

    /// Of many connections to each target, those and only those are answered that kube-proxy sent to one who is allowed.
    pub(super) fn through(&self, from: &str, targets: &[(Protocol, SocketAddr)], allowed: &[&str]) -> Result<()> {
        let start = Instant::now();
        loop {
            let before = self.proxy.sent()?;
            let answers = connect_all(self.cluster(), from, targets, TIMES)?;
            let sent = self.sent_since(&before)?;
            let found = sum(&answers);
            for (name, count) in &found.by_host {
                ensure!(allowed.contains(&name.as_str()), "{name} answered {from} {count} times through {targets:?}");
            }
            let (good, bad): (BTreeMap<_, _>, BTreeMap<_, _>) =
                sent.into_iter().partition(|(name, _)| allowed.contains(&name.as_str()));
            // A source port that is used again is not counted again: more may be answered than were counted, never fewer.
            let all_chosen = answers.iter().all(|target| target.by_host.len() == allowed.len());
            let all_answered = good.iter().all(|(name, count)| found.by_host.get(name) >= Some(count));
            if all_chosen && all_answered && bad.is_empty() == (found.dropped == 0) {
                return Ok(());
            }
            // A machine that is busy with other tests loses some.
            ensure!(
                start.elapsed() < TIMEOUT,
                "{from} through {targets:?}: of those allowed {good:?} were chosen, of the others {bad:?}; {found:?}"
            );
        }
    }

    /// Of some connections to each target, kube-proxy sees none.
    pub(super) fn nowhere(&self, from: &str, targets: &[(Protocol, SocketAddr)]) -> Result<()> {
        let before = self.proxy.sent()?;
        let found = sum(&connect_all(self.cluster(), from, targets, TIMES)?);
        let sent = self.sent_since(&before)?;
        ensure!(found.by_host.is_empty() && sent.is_empty(), "{from} through {targets:?}: sent to {sent:?}, {found:?}");
        Ok(())
    }

    /// Waits until the agent enforces what the manifests say by now: it takes up all of them at once.
    pub(super) fn settle(&self) -> Result<()> {
        let round = self.rounds.fetch_add(1, Ordering::Relaxed);
        let rule = if round.is_multiple_of(2) { "" } else { ", egress: [{}]" };
        let fence = policy(
            "shop/fence",
            &format!("{{podSelector: {{matchLabels: {{app: visitor}}}}, policyTypes: [Egress]{rule}}}"),
        );
        self.cluster().apply("fence", &fence)?;
        let start = Instant::now();
        loop {
            let probe = self.cluster().probe("shop/visitor", "outside", Tcp, 80);
            let passes = self.cluster().try_all(&[probe])?[0].passed();
            if passes != rule.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < TIMEOUT, "the agent does not take up the policy {fence}");
        }
    }

    /// The agent told of such a denial, on the way to a pod by name, or to one of a node's addresses.
    pub(super) fn denied(&self, reason: &str, from: &str, to: &str) -> Result<()> {
        self.agent().wait_denied(|line| self.is_it(line, reason, from, to)).map(|_| ())
    }

    /// The same, and it named the Service.
    ///
    /// # Panics
    /// Where there is no Service of this number.
    pub(super) fn denied_through(&self, service: u16, reason: &str, from: &str, to: &str) -> Result<()> {
        let is_it = |line: &Denied| self.is_it(line, reason, from, to) && line.names_service(entry(service).1);
        self.agent().wait_denied(is_it).map(|_| ())
    }

    fn is_it(&self, line: &Denied, reason: &str, from: &str, to: &str) -> bool {
        line.reason() == reason && line.from() == from && self.is_called(line.to(), to)
    }

    fn is_called(&self, told: &str, name: &str) -> bool {
        told == name
            || told.parse().is_ok_and(|address| self.cluster().host_at(address).is_some_and(|host| host.name() == name))
    }

    fn sent_since(&self, before: &BTreeMap<SocketAddr, u64>) -> Result<BTreeMap<String, u64>> {
        let mut sent = BTreeMap::new();
        for (backend, count) in self.proxy.sent()? {
            let count = count - before.get(&backend).copied().unwrap_or_default();
            let host = self.cluster().host_at(backend.ip()).with_context(|| format!("nobody has {backend}"))?;
            if count > 0 {
                *sent.entry(host.name().to_owned()).or_default() += count;
            }
        }
        Ok(sent)
    }
}

/// Ports at each of some addresses.
pub(super) fn targets(addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Vec<(Protocol, SocketAddr)> {
    let at = |address: &IpAddr| {
        let address = *address;
        ports.iter().map(move |&(protocol, port)| (protocol, SocketAddr::new(address, port)))
    };
    addresses.iter().flat_map(at).collect()
}

fn sum(answers: &[Responses]) -> Responses {
    let mut sum = Responses::default();
    for one in answers {
        sum.dropped += one.dropped;
        for (name, count) in &one.by_host {
            *sum.by_host.entry(name.clone()).or_default() += count;
        }
    }
    sum
}
