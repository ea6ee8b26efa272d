//! Denied packets and misunderstood policies, up to the API server.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use netpol_agent::dataplane::Memory;
use netpol_agent::dataplane::switch::Snapshot;
use netpol_agent::endpoints::{PodSide, Survey, Veth};
use netpol_agent::events::kubernetes::{self, Dropped, Handle, Numbers, Sink};
use netpol_agent::events::{Lines, Reporter};
use netpol_agent::reconcile::{Options, Reconciler, UnknownPods};
use netpol_agent::source::ObjectSource;
use netpol_apiserver::{ApiServer, Effect, Fault, Network, Options as ServerOptions, Resource, Rules, Verb};
use netpol_common::{DenyEvent, Direction, IfIndex, Reason, protocol};
use netpol_policy::manifest;
use netpol_policy::world::Event;
use serde_json::{Value, json};
use tempfile::TempDir;

const POLICIES: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny-all, namespace: shop},
 spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}
";

const BAD: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad, namespace: shop},
 spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}}
";

/// Everything between a denied packet and the API server.
struct Bench {
    server: ApiServer,
    reconciler: Reconciler<Memory>,
    reporter: Option<Reporter>,
    handle: Option<Handle>,
    runtime: tokio::runtime::Runtime,
    _credentials: TempDir,
}

fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"nodeName": node}, "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
}

/// As the agent starts it.
fn start(node: &str, server: &ApiServer, credentials: &Path) -> (Sink, Handle) {
    let kubeconfig = server.write_credentials(credentials).expect("credentials");
    let source = ObjectSource::Kube(Some(kubeconfig));
    kubernetes::start(node, source.api_client().expect("it has an API server")).expect("a thread")
}

impl Bench {
    fn start(node: &str, policies: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = ApiServer::start(listener, ServerOptions::default()).expect("a server");
        let credentials = TempDir::new().expect("a directory");
        for object in [pod("web", "n1", "10.0.0.2"), pod("db", "n2", "10.0.1.2")] {
            server.apply(object).expect("it is taken");
        }
        let pods = server.all(Resource::Pods);
        let mut text = pods.iter().fold(String::new(), |text, object| text + &object.to_string() + "\n---\n");
        let name = if policies == BAD { "bad" } else { "deny-all" };
        let metadata = json!({"name": name, "namespace": "shop"});
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata});
        server.apply(policy).expect("it is taken");
        text += policies;
        let objects = manifest::parse(&text, "test.yaml").objects.into_iter().map(|located| located.object).collect();
        let veth = Veth { ifindex: IfIndex(3), name: "veth3".into(), namespace: 0, peer: 2, bridge: None, packets: 0 };
        let veths = [(IfIndex(3), (veth, PodSide::at(vec!["10.0.0.2".parse().expect("an address")])))].into();
        let options = Options {
            node: node.into(),
            unknown_pods: UnknownPods::Allow,
            source_guard: true,
            tunnels_to_node: false,
            policy_memory: None,
        };
        let survey = Survey { veths, ..Survey::default() };
        let reconciler =
            Reconciler::start(Memory::default(), options, &Snapshot::default(), vec![Event::Reset(objects)], survey);
        let (sink, handle) = start(node, &server, credentials.path());
        Self {
            server,
            reconciler: reconciler.expect("it starts"),
            reporter: Some(Reporter::new(Lines::to(std::io::sink())).and_to(Some(sink))),
            handle: Some(handle),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
            _credentials: credentials,
        }
    }

    /// The kernel tells that a packet of shop/web to this address and port was dropped, and `suppressed` more.
    fn deny(&mut self, destination: [u8; 4], port: u16, suppressed: u32) {
        let bytes = |address: [u8; 4]| std::array::from_fn(|at| address.get(at).copied().unwrap_or(0));
        let event = DenyEvent {
            ifindex: IfIndex(3),
            rule_set: self.reconciler.held()[&IfIndex(3)].endpoint.egress.rule_set,
            suppressed,
            length: 60,
            direction: Direction::Egress as u8,
            reason: Reason::NoRule as u8,
            family: 4,
            protocol: protocol::TCP,
            source_port: 40_000_u16.to_be_bytes(),
            destination_port: port.to_be_bytes(),
            source: bytes([10, 0, 0, 2]),
            destination: bytes(destination),
            ..DenyEvent::default()
        };
        self.reporter.as_mut().expect("it has not ended").deny(&event, &self.reconciler);
    }

    fn numbers(&self) -> &Numbers {
        self.reporter.as_ref().and_then(Reporter::kubernetes).expect("it has not ended")
    }

    fn review(&mut self) {
        let Self { reporter, reconciler, .. } = self;
        reporter.as_mut().expect("it has not ended").review(reconciler);
    }

    /// Waits for so many Events, and returns them.
    fn events(&self, count: usize) -> Vec<Value> {
        self.until(&format!("{count} Events"), || self.server.events().len() >= count);
        self.server.events()
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "no {what} came; there are: {:#?}",
                self.server.events()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As when the agent stops.
    fn end(&mut self) -> Duration {
        self.reporter = None;
        let begun = Instant::now();
        self.runtime.block_on(self.handle.take().expect("it has not ended").finish());
        begun.elapsed()
    }

    fn writes(&self) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|request| matches!(request.verb, Some(Verb::Create | Verb::Patch))).count()
    }
}

fn text<'v>(event: &'v Value, pointer: &str) -> &'v str {
    event.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn a_denied_packet_becomes_an_event_that_kubectl_describe_shows() {
    let mut bench = Bench::start("n1", POLICIES);
    let begun = Instant::now();
    bench.deny([10, 0, 1, 2], 5432, 0);
    let events = bench.events(1);
    assert!(begun.elapsed() < Duration::from_secs(5));
    let event = &events[0];
    let web = bench.server.get(Resource::Pods, "shop", "web").expect("it is there");
    // What `kubectl describe pod` selects by.
    assert_eq!(text(event, "/regarding/uid"), text(&web, "/metadata/uid"));
    assert_eq!(text(event, "/regarding/kind"), "Pod");
    assert_eq!(text(event, "/regarding/namespace"), "shop");
    assert_eq!(text(event, "/regarding/name"), "web");
    // What the API server's validation asks for.
    assert_eq!(text(event, "/metadata/namespace"), text(event, "/regarding/namespace"));
    assert_eq!(text(event, "/type"), "Warning");
    assert_eq!(text(event, "/reason"), "NetworkPolicyDenied");
    assert_eq!(text(event, "/action"), "Deny");
    assert_eq!(text(event, "/reportingController"), "netpol-agent");
    assert_eq!(text(event, "/reportingInstance"), "n1");
    assert!(text(event, "/eventTime").ends_with('Z'), "{event}");
    assert_eq!(event.get("series"), None, "of one there is no series");
    assert_eq!(
        text(event, "/note"),
        "egress to shop/db (10.0.1.2) port 5432/TCP denied by NetworkPolicy shop/deny-all: no rule allows it"
    );
    assert_eq!(text(event, "/related/name"), "db");
}

#[test]
fn a_thousand_denied_packets_are_one_event_and_its_series() {
    let mut bench = Bench::start("n1", POLICIES);
    for _ in 0..100 {
        bench.deny([10, 0, 1, 2], 5432, 0);
    }
    bench.events(1);
    for _ in 0..90 {
        bench.deny([10, 0, 1, 2], 5432, 9);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(bench.writes(), 1, "it is said again only later");
    // It ends: nothing counted is lost.
    assert!(bench.end() < Duration::from_secs(3));
    let events = bench.events(1);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].pointer("/series/count"), Some(&json!(1000)));
    assert!(text(&events[0], "/series/lastObservedTime") > text(&events[0], "/eventTime"));
    assert_eq!(bench.writes(), 2);
}

#[test]
fn a_port_scan_does_not_flood_the_api_server() {
    let mut bench = Bench::start("n1", POLICIES);
    for round in 0..20 {
        for port in 0..500 {
            bench.deny([10, 0, 1, 2], round * 500 + port, 0);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.events(11);
    std::thread::sleep(Duration::from_millis(500));
    let unheard = bench.numbers().dropped(Dropped::Queue);
    bench.end();
    let events = bench.events(11);
    assert_eq!(events.len(), 11, "ten that name their port, and one for all others");
    assert!(bench.writes() <= 26, "{}", bench.writes());
    let count = |event: &Value| event.pointer("/series/count").map_or(1, |count| count.as_u64().unwrap_or(0));
    assert_eq!(events.iter().map(count).sum::<u64>() + unheard, 10_000);
}

#[test]
fn a_policy_that_is_not_understood_has_one_event_whoever_says_it() {
    let mut bench = Bench::start("n1", BAD);
    bench.review();
    let events = bench.events(1);
    let policy = bench.server.get(Resource::NetworkPolicies, "shop", "bad").expect("it is there");
    assert_eq!(text(&events[0], "/regarding/uid"), text(&policy, "/metadata/uid"));
    assert_eq!(text(&events[0], "/regarding/kind"), "NetworkPolicy");
    assert_eq!(text(&events[0], "/reason"), "NotUnderstood");
    let note = text(&events[0], "/note");
    assert!(note.starts_with("spec.ingress[0].from[0].ipBlock.cidr: "), "{note}");
    // Another agent, or this one started anew, finds it said.
    let credentials = TempDir::new().expect("a directory");
    let (sink, handle) = start("n2", &bench.server, credentials.path());
    let mut other = Reporter::new(Lines::to(std::io::sink())).and_to(Some(sink));
    other.review(&bench.reconciler);
    bench.until("second try", || bench.server.requests().iter().any(|request| request.status == Some(409)));
    drop(other);
    bench.runtime.block_on(handle.finish());
    assert_eq!(bench.server.events(), events);
}

#[test]
fn agents_without_pods_of_a_policy_say_nothing_of_it() {
    let mut bench = Bench::start("n3", BAD);
    bench.review();
    std::thread::sleep(Duration::from_secs(1));
    bench.end();
    assert_eq!((bench.server.events().len(), bench.server.requests().len()), (0, 0));
}

#[test]
fn while_the_api_server_is_away_counts_go_on_and_nobody_waits() {
    let mut bench = Bench::start("n1", POLICIES);
    bench.server.network(Network::Refuse);
    let begun = Instant::now();
    for _ in 0..500 {
        bench.deny([10, 0, 1, 2], 5432, 0);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "the loop waited for the API server");
    std::thread::sleep(Duration::from_millis(1500));
    bench.server.network(Network::Up);
    let events = bench.events(1);
    assert_eq!(events[0].pointer("/series/count"), Some(&json!(500)));
}

#[test]
fn failures_of_the_api_server_are_tried_again() {
    let mut bench = Bench::start("n1", POLICIES);
    bench.server.inject(Fault::on(Effect::status(429).retry_after(1)).verb(Verb::Create).times(1));
    bench.server.inject(Fault::on(Effect::cut_in_the_middle()).verb(Verb::Create).times(1));
    bench.deny([10, 0, 1, 2], 5432, 0);
    // The answer was cut, but not the write: it must not be there twice.
    bench.until("number", || bench.numbers().published() == 1);
    assert_eq!(bench.server.events().len(), 1);
}

#[test]
fn an_agent_that_may_not_write_events_goes_on_when_it_may() {
    let mut bench = Bench::start("n1", POLICIES);
    bench.server.set_rules(Rules::all().without(Resource::Events, None));
    bench.deny([10, 0, 1, 2], 5432, 0);
    bench.until("refusal", || bench.server.requests().iter().any(|request| request.status == Some(403)));
    assert!(bench.server.events().is_empty());
    bench.server.set_rules(Rules::all());
    bench.events(1);
}

#[test]
fn an_agent_that_may_not_look_up_pods_writes_events_without_uid() {
    let mut bench = Bench::start("n1", POLICIES);
    bench.server.set_rules(Rules::all().without(Resource::Pods, Some(Verb::Get)));
    bench.deny([10, 0, 1, 2], 5432, 0);
    assert_eq!(bench.events(1)[0].pointer("/regarding/uid"), None);
}

#[test]
fn a_token_that_expires_is_read_again() {
    let mut bench = Bench::start("n1", POLICIES);
    bench.deny([10, 0, 1, 2], 5432, 0);
    bench.events(1);
    bench.server.rotate_token().expect("it is written");
    bench.server.expire_old_tokens();
    bench.deny([10, 0, 1, 3], 5432, 0);
    bench.events(2);
}

#[test]
fn an_event_that_the_api_server_forgot_is_made_again() {
    let mut bench = Bench::start("n1", POLICIES);
    bench.deny([10, 0, 1, 2], 5432, 0);
    let events = bench.events(1);
    bench.until("number", || bench.numbers().published() == 1);
    bench.server.delete(Resource::Events, "shop", text(&events[0], "/metadata/name"));
    bench.deny([10, 0, 1, 2], 5432, 0);
    bench.end();
    let events = bench.events(1);
    assert_eq!(events[0].pointer("/series/count"), Some(&json!(2)));
    assert!(!text(&events[0], "/regarding/uid").is_empty());
}

#[test]
fn a_pod_that_is_gone_has_no_event() {
    let mut bench = Bench::start("n1", POLICIES);
    bench.server.delete(Resource::Pods, "shop", "web");
    bench.deny([10, 0, 1, 2], 5432, 0);
    bench.until("number", || bench.numbers().dropped(Dropped::Gone) == 1);
    assert!(bench.server.events().is_empty());
    assert_eq!(bench.reporter.as_ref().map(Reporter::told), Some(1), "it is told elsewhere");
}
