//! Tests Kubernetes Events for denied packets and invalid policies, from the reconciler to the API server.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use netpol_agent::events::kubernetes::{self, DropReason, EventCounters, Handle, Sink};
use netpol_agent::events::{FlowBuffer, Lines, Reporter};
use netpol_agent::reconcile::{Options, Reconciler};
use netpol_api::FlowVerdict;
use netpol_apiserver::{ApiServer, Effect, Fault, Network, Options as ServerOptions, Resource, Rules, Verb};
use netpol_common::{Direction, FlowEvent, IfIndex, Reason, event_flags, protocol};
use netpol_dataplane::Memory;
use netpol_dataplane::migration::Snapshot;
use netpol_node::{InterfaceSnapshot, PodEnd, Veth};
use netpol_policy::cluster_state::Event;
use netpol_policy::manifest;
use netpol_policy::model::Timestamp;
use netpol_source::ObjectSource;
use serde_json::{Value, json};
use tempfile::TempDir;

const DENY_ALL: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny-all, namespace: shop},
 spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}
";

const INVALID_POLICY: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad, namespace: shop},
 spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}}
";

/// All components from a deny event to the API server.
struct Pipeline {
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

/// Starts the writer of Events as the agent does.
fn start_event_writer(node: &str, server: &ApiServer, credentials: &Path) -> (Sink, Handle) {
    let kubeconfig = server.write_credentials(credentials).expect("cannot write the credentials");
    let source = ObjectSource::Kube(Some(kubeconfig));
    kubernetes::start(node, source.api_client().expect("the source has no API server")).expect("cannot start a thread")
}

impl Pipeline {
    /// Starts the pipeline of the agent on `node`. Pod `shop/web` is on node `n1`, and pod `shop/db` on `n2`.
    fn start(node: &str, policies: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("cannot bind a port");
        let server = ApiServer::start(listener, ServerOptions::default()).expect("cannot start the API server");
        let credentials = TempDir::new().expect("cannot create a directory");
        for object in [pod("web", "n1", "10.0.0.2"), pod("db", "n2", "10.0.1.2")] {
            server.apply(object).expect("the server rejected the object");
        }
        let pods = server.all(Resource::Pods);
        let mut text = pods.iter().fold(String::new(), |text, object| text + &object.to_string() + "\n---\n");
        // An Event about a policy contains the policy's UID. The agent reads this UID from the API server. So the
        // server has an object with the policy's name, without spec.
        let name = if policies == INVALID_POLICY { "bad" } else { "deny-all" };
        let metadata = json!({"name": name, "namespace": "shop"});
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata});
        server.apply(policy).expect("the server rejected the object");
        text += policies;
        let objects = manifest::parse(&text, "test.yaml").objects.into_iter().map(|located| located.object).collect();
        let veth = Veth { ifindex: IfIndex(3), name: "veth3".into(), namespace: 0, peer: 2, bridge: None, packets: 0 };
        let veths = [(IfIndex(3), (veth, PodEnd::at(vec!["10.0.0.2".parse().expect("invalid address")])))].into();
        let options = Options::of_node(node);
        let interfaces = InterfaceSnapshot { veths, ..InterfaceSnapshot::default() };
        let reconciler = Reconciler::start(
            Memory::default(),
            options,
            &Snapshot::default(),
            vec![Event::Reset(objects)],
            interfaces,
        );
        let (sink, handle) = start_event_writer(node, &server, credentials.path());
        Self {
            server,
            reconciler: reconciler.expect("cannot start the reconciler"),
            reporter: Some(
                Reporter::new(Lines::to(std::io::sink()), FlowBuffer::default()).with_kube_events(Some(sink)),
            ),
            handle: Some(handle),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("cannot create a runtime"),
            _credentials: credentials,
        }
    }

    /// Reports a denied packet from shop/web to this address and port. `suppressed` is the number of earlier packets of
    /// the flow that the eBPF programs counted but did not report.
    fn deny(&mut self, destination: [u8; 4], port: u16, suppressed: u32) {
        self.report(0, destination, port, suppressed);
    }

    /// Reports a packet that policies deny. `flags`: 0 for enforced policies, `event_flags::SHADOW` for policies in
    /// shadow mode. The other parameters are those of [`Self::deny`].
    fn report(&mut self, flags: u8, destination: [u8; 4], port: u16, suppressed: u32) {
        let bytes = |address: [u8; 4]| std::array::from_fn(|index| address.get(index).copied().unwrap_or(0));
        let endpoint = &self.reconciler.endpoint(IfIndex(3)).expect("no endpoint").endpoint;
        let policies = if flags == 0 { &endpoint.egress } else { &endpoint.shadow_egress };
        let event = FlowEvent {
            ifindex: IfIndex(3),
            rule_set: policies.rule_set,
            suppressed,
            length: 60,
            direction: Direction::Egress as u8,
            flags,
            reason: Reason::NoRule as u8,
            family: 4,
            protocol: protocol::TCP,
            source_port: 40_000_u16.to_be_bytes(),
            destination_port: port.to_be_bytes(),
            source: bytes([10, 0, 0, 2]),
            destination: bytes(destination),
            ..FlowEvent::default()
        };
        self.reporter.as_mut().expect("the pipeline has ended").record(&event, &self.reconciler);
    }

    fn counters(&self) -> &EventCounters {
        self.reporter.as_ref().and_then(Reporter::kubernetes).expect("the pipeline has ended")
    }

    /// Reports invalid policies and suspensions of enforcement.
    fn report_notices(&mut self) {
        let Self { reporter, reconciler, .. } = self;
        reporter.as_mut().expect("the pipeline has ended").report_notices(reconciler);
    }

    /// Waits until there are at least this many Events. Returns all Events.
    fn events(&self, count: usize) -> Vec<Value> {
        self.wait_until(&format!("{count} Events"), || self.server.events().len() >= count);
        self.server.events()
    }

    fn wait_until(&self, awaited: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "timed out waiting for {awaited}; the Events are: {:#?}",
                self.server.events()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the pipeline as an agent does when it stops. Returns how long this takes.
    fn end(&mut self) -> Duration {
        self.reporter = None;
        let started = Instant::now();
        self.runtime.block_on(self.handle.take().expect("the pipeline has ended").finish());
        started.elapsed()
    }

    /// Returns the number of requests that create or patch an object.
    fn writes(&self) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|request| matches!(request.verb, Some(Verb::Create | Verb::Patch))).count()
    }
}

fn text<'v>(event: &'v Value, pointer: &str) -> &'v str {
    event.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn a_denied_packet_becomes_an_event_for_kubectl_describe() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    let started = Instant::now();
    pipeline.deny([10, 0, 1, 2], 5432, 0);
    let events = pipeline.events(1);
    assert!(started.elapsed() < Duration::from_secs(5));
    let event = &events[0];
    let web = pipeline.server.get(Resource::Pods, "shop", "web").expect("the pod does not exist");
    // Fields by which `kubectl describe pod` selects Events.
    assert_eq!(text(event, "/regarding/uid"), text(&web, "/metadata/uid"));
    assert_eq!(text(event, "/regarding/kind"), "Pod");
    assert_eq!(text(event, "/regarding/namespace"), "shop");
    assert_eq!(text(event, "/regarding/name"), "web");
    // Fields that the API server's validation requires.
    assert_eq!(text(event, "/metadata/namespace"), text(event, "/regarding/namespace"));
    assert_eq!(text(event, "/type"), "Warning");
    assert_eq!(text(event, "/reason"), "NetworkPolicyDenied");
    assert_eq!(text(event, "/action"), "Deny");
    assert_eq!(text(event, "/reportingController"), "netpol-agent");
    assert_eq!(text(event, "/reportingInstance"), "n1");
    assert!(text(event, "/eventTime").ends_with('Z'), "{event}");
    assert_eq!(event.get("series"), None, "the Event of a single packet must have no series");
    assert_eq!(
        text(event, "/note"),
        "egress to shop/db (10.0.1.2) port 5432/TCP denied by NetworkPolicy shop/deny-all: no rule allows it"
    );
    assert_eq!(text(event, "/related/name"), "db");
}

#[test]
fn a_would_be_denial_becomes_an_event_of_type_normal() {
    // A would-be denial: a policy in shadow mode would deny the packet.
    let shadow = DENY_ALL.replace("namespace: shop}", "namespace: shop, annotations: {netpol.io/mode: shadow}}");
    let mut pipeline = Pipeline::start("n1", &shadow);
    pipeline.report(event_flags::SHADOW, [10, 0, 1, 2], 5432, 0);
    let events = pipeline.events(1);
    assert_eq!(text(&events[0], "/type"), "Normal");
    assert_eq!(text(&events[0], "/reason"), "NetworkPolicyShadowDenied");
    assert_eq!(text(&events[0], "/action"), "Observe");
    assert_eq!(
        text(&events[0], "/note"),
        "egress to shop/db (10.0.1.2) port 5432/TCP would be denied by NetworkPolicy shop/deny-all if enforced: no rule \
         allows it"
    );
}

#[test]
fn a_thousand_denied_packets_become_one_event_with_a_series() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    for _ in 0..100 {
        pipeline.deny([10, 0, 1, 2], 5432, 0);
    }
    pipeline.events(1);
    // Each report stands for ten packets: the reported packet, and nine that were suppressed.
    for _ in 0..90 {
        pipeline.deny([10, 0, 1, 2], 5432, 9);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(pipeline.writes(), 1, "the Event must not be updated yet");
    // When the agent stops, it writes the number of packets.
    assert!(pipeline.end() < Duration::from_secs(3));
    let events = pipeline.events(1);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].pointer("/series/count"), Some(&json!(1000)));
    assert!(text(&events[0], "/series/lastObservedTime") > text(&events[0], "/eventTime"));
    assert_eq!(pipeline.writes(), 2);
}

#[test]
fn a_port_scan_does_not_flood_the_api_server() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    for round in 0..20 {
        for port in 0..500 {
            pipeline.deny([10, 0, 1, 2], round * 500 + port, 0);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    pipeline.events(11);
    std::thread::sleep(Duration::from_millis(500));
    let dropped = pipeline.counters().dropped(DropReason::QueueFull);
    pipeline.end();
    let events = pipeline.events(11);
    assert_eq!(events.len(), 11, "ten Events for single ports and one for all others");
    // The agent sends at most 25 writes for a pod at once (`POD_BURST`). The test accepts one more.
    assert!(pipeline.writes() <= 26, "{}", pipeline.writes());
    let count = |event: &Value| event.pointer("/series/count").map_or(1, |count| count.as_u64().unwrap_or(0));
    assert_eq!(events.iter().map(count).sum::<u64>() + dropped, 10_000);
}

#[test]
fn an_invalid_policy_has_one_event_from_all_agents_together() {
    let mut pipeline = Pipeline::start("n1", INVALID_POLICY);
    pipeline.report_notices();
    let events = pipeline.events(1);
    let policy = pipeline.server.get(Resource::NetworkPolicies, "shop", "bad").expect("the policy does not exist");
    assert_eq!(text(&events[0], "/regarding/uid"), text(&policy, "/metadata/uid"));
    assert_eq!(text(&events[0], "/regarding/kind"), "NetworkPolicy");
    assert_eq!(text(&events[0], "/reason"), "InvalidPolicyField");
    let note = text(&events[0], "/note");
    assert!(note.starts_with("spec.ingress[0].from[0].ipBlock.cidr: "), "{note}");
    // Another agent, or the same agent after a restart, finds that the Event exists.
    let credentials = TempDir::new().expect("cannot create a directory");
    let (sink, handle) = start_event_writer("n2", &pipeline.server, credentials.path());
    let mut other = Reporter::new(Lines::to(std::io::sink()), FlowBuffer::default()).with_kube_events(Some(sink));
    other.report_notices(&pipeline.reconciler);
    pipeline.wait_until("a second attempt to create the Event", || {
        pipeline.server.requests().iter().any(|request| request.status == Some(409))
    });
    drop(other);
    pipeline.runtime.block_on(handle.finish());
    assert_eq!(pipeline.server.events(), events);
}

#[test]
fn the_start_and_the_end_of_a_suspension_have_an_event_each() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    let namespace = |annotations: &str| {
        let text =
            format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{annotations}}}}}}}");
        let mut objects = manifest::parse(&text, "shop.yaml").objects.into_iter().map(|located| located.object);
        Event::Apply(objects.next().expect("no namespace"))
    };
    let minutes = |count: i64| Timestamp::from(jiff::Timestamp::now()).plus_seconds(60 * count);
    let suspended = |until: Timestamp| {
        namespace(&format!("netpol.io/suspended-until: '{until}', netpol.io/suspended-reason: incident 7"))
    };
    pipeline.reconciler.set_clock();
    pipeline.reconciler.apply(vec![suspended(minutes(30))]);
    assert_eq!(pipeline.reconciler.suspensions().len(), 1);
    pipeline.report_notices();
    let events = pipeline.events(1);
    assert_eq!(text(&events[0], "/reason"), "EnforcementSuspended");
    assert_eq!(text(&events[0], "/type"), "Warning");
    assert_eq!(text(&events[0], "/regarding/kind"), "Namespace");
    assert_eq!(text(&events[0], "/metadata/namespace"), "shop");
    let note = text(&events[0], "/note");
    assert!(note.contains("not enforced until") && note.ends_with("(incident 7)"), "{note}");
    pipeline.reconciler.apply(vec![namespace("")]);
    assert!(pipeline.reconciler.suspensions().is_empty());
    // The reporter looks for new notices at most once a second.
    std::thread::sleep(Duration::from_millis(1100));
    pipeline.report_notices();
    let reasons: Vec<_> = pipeline.events(2).iter().map(|event| text(event, "/reason").to_owned()).collect();
    assert!(reasons.contains(&"EnforcementResumed".to_owned()), "{reasons:?}");
}

#[test]
fn an_agent_writes_no_event_for_a_policy_that_selects_no_pod_of_its_node() {
    // Node `n3` has no pods.
    let mut pipeline = Pipeline::start("n3", INVALID_POLICY);
    pipeline.report_notices();
    std::thread::sleep(Duration::from_secs(1));
    pipeline.end();
    assert_eq!((pipeline.server.events().len(), pipeline.server.requests().len()), (0, 0));
}

#[test]
fn during_an_outage_packets_are_counted_without_blocking() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    pipeline.server.set_network(Network::Refuse);
    let started = Instant::now();
    for _ in 0..500 {
        pipeline.deny([10, 0, 1, 2], 5432, 0);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "reporting waited for the API server");
    std::thread::sleep(Duration::from_millis(1500));
    pipeline.server.set_network(Network::Up);
    let events = pipeline.events(1);
    assert_eq!(events[0].pointer("/series/count"), Some(&json!(500)));
}

#[test]
fn requests_that_fail_are_retried() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    pipeline.server.inject(Fault::new(Effect::status(429).retry_after(1)).verb(Verb::Create).times(1));
    pipeline.server.inject(Fault::new(Effect::cut_in_the_middle()).verb(Verb::Create).times(1));
    pipeline.deny([10, 0, 1, 2], 5432, 0);
    // The second fault cuts the response, but the Event was created. So the retry must not create a second Event.
    pipeline.wait_until("a published Event", || pipeline.counters().published() == 1);
    assert_eq!(pipeline.server.events().len(), 1);
}

#[test]
fn an_agent_without_permission_writes_events_after_it_gets_the_permission() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    pipeline.server.set_rules(Rules::all().without(Resource::Events, None));
    pipeline.deny([10, 0, 1, 2], 5432, 0);
    pipeline.wait_until("a forbidden request", || {
        pipeline.server.requests().iter().any(|request| request.status == Some(403))
    });
    assert!(pipeline.server.events().is_empty());
    pipeline.server.set_rules(Rules::all());
    pipeline.events(1);
}

#[test]
fn events_have_no_pod_uid_without_permission_to_get_pods() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    pipeline.server.set_rules(Rules::all().without(Resource::Pods, Some(Verb::Get)));
    pipeline.deny([10, 0, 1, 2], 5432, 0);
    assert_eq!(pipeline.events(1)[0].pointer("/regarding/uid"), None);
}

#[test]
fn after_the_token_expires_events_use_a_new_token() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    pipeline.deny([10, 0, 1, 2], 5432, 0);
    pipeline.events(1);
    pipeline.server.rotate_token().expect("cannot write the token");
    pipeline.server.expire_old_tokens();
    pipeline.deny([10, 0, 1, 3], 5432, 0);
    pipeline.events(2);
}

#[test]
fn an_event_that_the_api_server_deleted_is_created_again() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    pipeline.deny([10, 0, 1, 2], 5432, 0);
    let events = pipeline.events(1);
    pipeline.wait_until("a published Event", || pipeline.counters().published() == 1);
    pipeline.server.delete(Resource::Events, "shop", text(&events[0], "/metadata/name"));
    pipeline.deny([10, 0, 1, 2], 5432, 0);
    pipeline.end();
    let events = pipeline.events(1);
    assert_eq!(events[0].pointer("/series/count"), Some(&json!(2)));
    assert!(!text(&events[0], "/regarding/uid").is_empty());
}

#[test]
fn a_deleted_pod_gets_no_event() {
    let mut pipeline = Pipeline::start("n1", DENY_ALL);
    pipeline.server.delete(Resource::Pods, "shop", "web");
    pipeline.deny([10, 0, 1, 2], 5432, 0);
    pipeline.wait_until("a dropped Event", || pipeline.counters().dropped(DropReason::Deleted) == 1);
    assert!(pipeline.server.events().is_empty());
    assert_eq!(
        pipeline.reporter.as_ref().map(|reporter| reporter.events(FlowVerdict::Denied)),
        Some(1),
        "the packet must be reported as a JSON line"
    );
}
