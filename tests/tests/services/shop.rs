//! A cluster with Services, and checks of which backends reply through them.

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

/// Number of connections to each frontend. With six backends, in about one of 1,050 cases there is a backend that no
/// connection selects. Then the check is repeated.
const CONNECTIONS: usize = 48;

/// Protocol, Service port and target port of everything that the backends serve.
pub(super) const PORTS: [(Protocol, u16, u16); 2] = [(Tcp, 8080, 80), (Udp, 8053, 53)];

/// All hosts that can be backends.
pub(super) const ALL_BACKENDS: [&str; 6] = ["shop/near", "shop/bad", "shop/far", "shop/worse", "node-1", "node-2"];

/// Two nodes with an agent each. On both nodes, there are backends with `app=good` and `app=bad`: `near` and `bad` on
/// the first node, `far` and `worse` on the second one. `client` may connect only to pods with `app=good`, other pods
/// may connect to any address. `guarded`, and `vault` on the second node, accept connections only from pods with
/// `app=visitor`.
pub(super) struct Shop {
    /// The agent on the second node. The first field, so that it is dropped before the cluster.
    _far: Agent,
    /// The cluster, with the agent on the first node.
    pub(super) lab: Lab,
    pub(super) proxy: KubeProxy,
    /// Number of calls of [`Self::wait_applied`].
    rounds: AtomicU32,
}

fn build_cluster(shape: Shape) -> Result<Cluster> {
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

/// Returns a policy that allows egress from `client` to pods with `app=good`, at the ports that they serve.
fn allow_client_to_good() -> String {
    policy(
        "shop/client",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],
          egress: [{to: [{podSelector: {matchLabels: {app: good}}}], ports: [{port: 80}, {protocol: UDP, port: 53}]}]}",
    )
}

/// Returns a policy that allows ingress to `guarded` and `vault` only from pods with `app=visitor`.
fn allow_visitor_to_guarded() -> String {
    policy(
        "shop/guarded",
        "{podSelector: {matchLabels: {app: guarded}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: visitor}}}]}]}",
    )
}

/// Returns the cluster IPs of a Service, one of each family.
fn cluster_ip_addresses(number: u16) -> [IpAddr; 2] {
    let [_, last] = number.to_be_bytes();
    [Ipv4Addr::new(10, 96, 0, last).into(), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number).into()]
}

const fn node_port(number: u16, protocol: Protocol) -> u16 {
    30000 + number * 10 + protocol.number() as u16 % 10
}

/// The number of each Service. Its addresses and node ports contain this number.
pub(super) mod service_number {
    /// All backends have `app=good`.
    pub(crate) const GOOD: u16 = 10;
    /// No backend has `app=good`.
    pub(crate) const BAD: u16 = 11;
    /// All hosts of [`super::ALL_BACKENDS`] are backends.
    pub(crate) const MIXED: u16 = 12;
    /// The only backend is `guarded`.
    pub(crate) const GUARDED: u16 = 13;
    /// The only backend is `client`.
    pub(crate) const CLIENT: u16 = 14;
    /// The only backend is `vault`, on the other node.
    pub(crate) const VAULT: u16 = 16;
    /// The backends are `client`, and a pod to which `client` may not connect.
    pub(crate) const TWINS: u16 = 15;
}

/// Number, name and backends of each Service.
const SERVICES: [(u16, &str, &[&str]); 7] = [
    (service_number::GOOD, "shop/good", &["shop/near", "shop/far"]),
    (service_number::BAD, "shop/bad", &["shop/bad", "shop/worse"]),
    (service_number::MIXED, "shop/mixed", &ALL_BACKENDS),
    (service_number::GUARDED, "shop/guarded", &["shop/guarded"]),
    (service_number::VAULT, "shop/vault", &["shop/vault"]),
    (service_number::CLIENT, "shop/client", &["shop/client"]),
    (service_number::TWINS, "shop/twins", &["shop/client", "shop/bad"]),
];

/// Builds a Service with an address of each family and with node ports.
fn service(number: u16, name: &str) -> Service {
    let base = Service::new(name, &cluster_ip_addresses(number));
    PORTS.iter().fold(base, |service, &(protocol, port, target)| {
        service.node_port(protocol, port, target, node_port(number, protocol))
    })
}

/// Returns number, name and backends of a Service.
fn service_entry(service: u16) -> (u16, &'static str, &'static [&'static str]) {
    let found = SERVICES.iter().find(|(number, ..)| *number == service);
    *found.unwrap_or_else(|| panic!("there is no Service number {service}"))
}

impl Shop {
    /// Starts the cluster and its agents. The agents have all objects from the start.
    pub(super) fn open(shape: Shape) -> Result<Self> {
        Self::open_with(shape, &[])
    }

    /// Starts the cluster with additional arguments for the agents.
    pub(super) fn open_with(shape: Shape, arguments: &[&str]) -> Result<Self> {
        let cluster = build_cluster(shape)?;
        let proxy = KubeProxy::start(&cluster, shape.mode)?;
        let services = SERVICES.map(|(number, name, backends)| service(number, name).backends(&cluster, backends));
        proxy.sync(&services)?;
        services.iter().try_for_each(|service| service.write_manifest(&cluster))?;
        cluster.apply("first", &[allow_client_to_good(), allow_visitor_to_guarded()].concat())?;
        // Both agents start at the same time.
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

    /// Returns the Service with this number of [`service_number`], without backends.
    ///
    /// # Panics
    /// If there is no Service with this number.
    pub(super) fn service(number: u16) -> Service {
        service(number, service_entry(number).1)
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.lab.cluster
    }

    pub(super) fn agent(&self) -> &Agent {
        self.lab.agent_ref()
    }

    /// Returns the frontends at a Service's cluster IPs.
    pub(super) fn cluster_ips(service: u16) -> Vec<(Protocol, SocketAddr)> {
        targets(&cluster_ip_addresses(service), &PORTS.map(|(protocol, port, _)| (protocol, port)))
    }

    /// Returns the names of a Service's backends.
    ///
    /// # Panics
    /// If there is no Service with this number.
    pub(super) fn backends(service: u16) -> &'static [&'static str] {
        service_entry(service).2
    }

    /// Returns the node ports of a Service.
    pub(super) fn node_ports(service: u16) -> [(Protocol, u16); 2] {
        PORTS.map(|(protocol, ..)| (protocol, node_port(service, protocol)))
    }

    /// Opens many connections to each target. Checks that a connection gets a reply exactly if kube-proxy sent it to an
    /// allowed backend.
    pub(super) fn expect_backends(
        &self,
        from: &str,
        targets: &[(Protocol, SocketAddr)],
        allowed: &[&str],
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let before = self.proxy.sent_connections()?;
            let answers = connect_all(self.cluster(), from, targets, CONNECTIONS)?;
            let sent = self.sent_since(&before)?;
            let found = sum(&answers);
            for (name, count) in &found.by_host {
                ensure!(allowed.contains(&name.as_str()), "{name} replied to {from} {count} times through {targets:?}");
            }
            let (to_allowed, to_others): (BTreeMap<_, _>, BTreeMap<_, _>) =
                sent.into_iter().partition(|(name, _)| allowed.contains(&name.as_str()));
            // A connection that reuses a source port is not counted, so there may be more replies than counted
            // connections.
            let all_selected = answers.iter().all(|target| target.by_host.len() == allowed.len());
            let all_answered = to_allowed.iter().all(|(name, count)| found.by_host.get(name) >= Some(count));
            if all_selected && all_answered && to_others.is_empty() == (found.dropped == 0) {
                return Ok(());
            }
            // Packets may be lost on a machine that also runs other tests.
            ensure!(
                start.elapsed() < TIMEOUT,
                "{from} through {targets:?}: connections to allowed backends {to_allowed:?}, to others {to_others:?}; {found:?}"
            );
        }
    }

    /// Opens many connections to each target. Checks that none of them reaches kube-proxy.
    pub(super) fn expect_dropped_before_proxy(&self, from: &str, targets: &[(Protocol, SocketAddr)]) -> Result<()> {
        let before = self.proxy.sent_connections()?;
        let found = sum(&connect_all(self.cluster(), from, targets, CONNECTIONS)?);
        let sent = self.sent_since(&before)?;
        ensure!(found.by_host.is_empty() && sent.is_empty(), "{from} through {targets:?}: sent to {sent:?}, {found:?}");
        Ok(())
    }

    /// Waits until the agent of the first node enforces the current manifests. In each call, this function also changes
    /// a policy of `visitor`. The agent applies all changes together, so all are applied as soon as the agent enforces
    /// the new version of this policy.
    pub(super) fn wait_applied(&self) -> Result<()> {
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
            ensure!(start.elapsed() < TIMEOUT, "the agent does not enforce the policy {fence}");
        }
    }

    /// Waits until the agent reports a denial with this reason, source and destination. `to` is the name of a pod
    /// or of a node; the name of a node matches each of its addresses.
    pub(super) fn wait_denied(&self, reason: &str, from: &str, to: &str) -> Result<()> {
        self.agent().wait_denied(|line| self.matches(line, reason, from, to)).map(|_| ())
    }

    /// Same as [`Self::wait_denied`], for a denial that contains the name of the Service.
    ///
    /// # Panics
    /// If there is no Service with this number.
    pub(super) fn wait_denied_through(&self, service: u16, reason: &str, from: &str, to: &str) -> Result<()> {
        let matches =
            |line: &Denied| self.matches(line, reason, from, to) && line.names_service(service_entry(service).1);
        self.agent().wait_denied(matches).map(|_| ())
    }

    fn matches(&self, line: &Denied, reason: &str, from: &str, to: &str) -> bool {
        line.reason() == reason && line.from() == from && self.is_host(&line.to(), to)
    }

    /// Returns whether a name or address in a deny event refers to this host.
    fn is_host(&self, reported: &str, name: &str) -> bool {
        let has_address = |address| self.cluster().host_at(address).is_some_and(|host| host.name() == name);
        reported == name || reported.parse().is_ok_and(has_address)
    }

    fn sent_since(&self, before: &BTreeMap<SocketAddr, u64>) -> Result<BTreeMap<String, u64>> {
        let mut sent = BTreeMap::new();
        for (backend, count) in self.proxy.sent_connections()? {
            let count = count - before.get(&backend).copied().unwrap_or_default();
            let host = self
                .cluster()
                .host_at(backend.ip())
                .with_context(|| format!("no host has the address of {backend}"))?;
            if count > 0 {
                *sent.entry(host.name().to_owned()).or_default() += count;
            }
        }
        Ok(sent)
    }
}

/// Returns every combination of these addresses and ports.
pub(super) fn targets(addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Vec<(Protocol, SocketAddr)> {
    let at = |address: &IpAddr| {
        let address = *address;
        ports.iter().map(move |&(protocol, port)| (protocol, SocketAddr::new(address, port)))
    };
    addresses.iter().flat_map(at).collect()
}

fn sum(answers: &[Responses]) -> Responses {
    let mut sum = Responses::default();
    for responses in answers {
        sum.dropped += responses.dropped;
        for (name, count) in &responses.by_host {
            *sum.by_host.entry(name.clone()).or_default() += count;
        }
    }
    sum
}
