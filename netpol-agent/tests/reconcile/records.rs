//! Tests the records of flows: names, explanations, counters and limits.

use std::time::{Duration, Instant, UNIX_EPOCH};

use netpol_agent::events::{FlowBuffer, Lines, Reporter};
use netpol_agent::reconcile::{Options, Reconciler, UnknownPods};
use netpol_api::{FlowRecord, FlowVerdict, Record};
use netpol_common::{Direction, EventKind, FlowEvent, IfIndex, Reason, RuleSetId, Traffic, event_flags, protocol};
use netpol_dataplane::{BothWays, FlowEndReason, FlowTotals, Memory};
use netpol_policy::cluster_state::Event;
use netpol_policy::model::{ObjectKey, PodKey, PolicyKey};
use netpol_policy::reference::RuleRef;
use netpol_source::{Batch, Generation};

use super::{DENY_ALL, PODS, objects, replace_objects, start, start_with};

/// Allows egress from pod `web` to port 80 of all pods of the namespace, such as pod `far` on another node.
const ALLOW_FAR: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: far, namespace: shop},
 spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: 80}]}]}}
";

/// Returns an event of the endpoint of shop/web (interface 3), for a connection to a port of shop/far.
fn event(reconciler: &Reconciler<Memory>, reason: Reason, port: u16) -> FlowEvent {
    let endpoint = reconciler.endpoint(IfIndex(3)).expect("no endpoint").endpoint;
    let address = |address: [u8; 4]| std::array::from_fn(|index| address.get(index).copied().unwrap_or(0));
    FlowEvent {
        ifindex: IfIndex(3),
        endpoint: u16::try_from(endpoint.id).expect("the ID is too large"),
        rule_set: endpoint.egress.rule_set,
        direction: Direction::Egress as u8,
        reason: reason as u8,
        family: 4,
        protocol: protocol::TCP,
        source: address([10, 0, 0, 2]),
        source_port: 40_000_u16.to_be_bytes(),
        destination: address([10, 0, 1, 2]),
        destination_port: port.to_be_bytes(),
        length: 60,
        ..FlowEvent::default()
    }
}

/// Returns a reporter that writes its records to a buffer.
fn reporter(buffer: &FlowBuffer) -> Reporter {
    Reporter::new(Lines::to(std::io::sink()), buffer.clone()).with_allowed_flows(true)
}

/// Returns the flow records of a buffer.
fn flows(buffer: &FlowBuffer) -> Vec<FlowRecord> {
    let flow = |record: &Record| match record {
        Record::Flow(flow) => Some((**flow).clone()),
        _ => None,
    };
    buffer.records().iter().filter_map(|buffered| flow(&buffered.record)).collect()
}

/// Returns a reconciler with an endpoint for shop/web, and with these policies.
fn reconciler_with(policies: &[&str]) -> Reconciler<Memory> {
    let manifests: Vec<&str> = [PODS].into_iter().chain(policies.iter().copied()).collect();
    start(Memory::default(), UnknownPods::Allow, &manifests, &[(3, "10.0.0.2")])
}

#[test]
fn a_record_has_both_ends_their_policies_and_the_rule() {
    let reconciler = reconciler_with(&[ALLOW_FAR]);
    let buffer = FlowBuffer::new(10);
    let mut reporter = reporter(&buffer);
    let allowed = FlowEvent { suppressed: 4, ..event(&reconciler, Reason::Rule, 80) };
    reporter.record(&allowed, &reconciler);
    reporter.record(&event(&reconciler, Reason::NoRule, 81), &reconciler);
    // The current policies allow port 80, so this packet was evaluated by earlier policies.
    reporter.record(&event(&reconciler, Reason::NoRule, 80), &reconciler);
    let [allowed, denied, by_earlier_policies] = &flows(&buffer)[..] else { panic!("{:?}", flows(&buffer)) };

    assert_eq!((allowed.verdict, allowed.header.node.as_str()), (FlowVerdict::Allowed, "n1"));
    assert_eq!((allowed.from.pod.as_deref(), allowed.to.pod.as_deref()), (Some("web"), Some("far")));
    assert_eq!((allowed.from.node.as_deref(), allowed.to.node.as_deref()), (Some("n1"), Some("n2")));
    let egress = allowed.egress.as_ref().expect("no egress");
    assert_eq!(egress.rule.as_ref().map(|rule| rule.path.as_str()), Some("spec.egress[0]"));
    assert_eq!(allowed.ingress.as_ref().map(|side| side.reason.as_str()), Some("not-isolated"));

    let egress = denied.egress.as_ref().expect("no egress");
    assert_eq!((denied.verdict, &egress.policies[..]), (FlowVerdict::Denied, &["shop/far".to_owned()][..]));
    assert!(
        egress.nearest.is_some() && egress.fix.as_ref().is_some_and(|fix| fix.yaml.contains("port: 81")),
        "{egress:?}"
    );

    let egress = by_earlier_policies.egress.as_ref().expect("no egress");
    assert_eq!(by_earlier_policies.unexplained.as_deref(), Some("policies have changed since the packet"));
    assert_eq!((egress.verdict, &egress.nearest), (FlowVerdict::Denied, &None));

    let rule = RuleRef { policy: PolicyKey::new("shop", "far"), direction: Direction::Egress, index: 0 };
    let hits = reporter.hits().of_rule(&rule, reconciler.engine().cluster_state()).expect("no flows");
    // The event of the allowed flow stands for 4 more flows.
    assert_eq!((hits.flows, reporter.hits().denied_of(&rule.policy).map(|hits| hits.flows)), (5, Some(2)));
}

#[test]
fn totals_have_the_names_of_both_ends_and_the_interval() {
    let reconciler = reconciler_with(&[]);
    let buffer = FlowBuffer::new(10);
    let mut reporter = reporter(&buffer);
    let both_ways = |packets: u64| BothWays {
        sent: Traffic { packets, bytes: packets * 100 },
        replies: Traffic { packets: 2 * packets, bytes: packets * 1000 },
    };
    let time = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let minute = FlowTotals {
        first_packet: event(&reconciler, Reason::Flow, 80),
        started: time(0),
        last_seen: time(130),
        total: both_ways(12),
        interval: Some((time(60), both_ways(2))),
        ending: None,
    };
    let end = FlowTotals { interval: None, ending: Some(FlowEndReason::Evicted), ..minute.clone() };
    for totals in [&minute, &end] {
        reporter.record_totals(totals, &reconciler);
    }
    let records: Vec<serde_json::Value> = buffer
        .records()
        .iter()
        .map(|buffered| serde_json::to_value(&*buffered.record).expect("cannot serialize the record"))
        .collect();
    let [minute, end] = &records[..] else { panic!("{records:?}") };
    for (field, expected) in [
        ("/type", serde_json::json!("flowTotals")),
        ("/direction", "egress".into()),
        ("/from/pod", "web".into()),
        ("/to/pod", "far".into()),
        ("/port", 80.into()),
        ("/started", "1970-01-01T00:00:00.000Z".into()),
        ("/lastSeen", "1970-01-01T00:02:10.000Z".into()),
        ("/packets", 12.into()),
        ("/bytes", 1200.into()),
        ("/replyPackets", 24.into()),
        ("/replyBytes", 12_000.into()),
    ] {
        assert_eq!((minute.pointer(field), end.pointer(field)), (Some(&expected), Some(&expected)), "{field}");
    }
    let interval = serde_json::json!({
        "since": "1970-01-01T00:01:00.000Z", "packets": 2, "bytes": 200, "replyPackets": 4, "replyBytes": 2000
    });
    assert_eq!((minute.get("interval"), minute.get("ended")), (Some(&interval), None));
    assert_eq!((end.get("interval"), end.get("ended")), (None, Some(&"evicted".into())));
}

#[test]
fn a_flow_of_a_deleted_pod_is_not_explained() {
    let mut reconciler = reconciler_with(&[ALLOW_FAR]);
    let buffer = FlowBuffer::new(10);
    let mut reporter = reporter(&buffer);
    let denied = event(&reconciler, Reason::NoRule, 81);
    reconciler.apply(vec![Event::Delete(ObjectKey::Pod(PodKey::new("shop", "web")))]);
    reporter.record(&denied, &reconciler);
    let [flow] = &flows(&buffer)[..] else { panic!("{:?}", flows(&buffer)) };
    assert_eq!((flow.from.pod.as_deref(), flow.unexplained.as_deref()), (Some("web"), Some("the pod was deleted")));
    let reason = flow.egress.as_ref().map(|side| side.reason.as_str());
    assert_eq!(reason, Some("no-rule"), "the reason must be that of the event");
}

#[test]
fn a_revoked_flow_has_the_change_that_revoked_it() {
    let mut reconciler = reconciler_with(&[]);
    let buffer = FlowBuffer::new(10);
    let mut reporter = reporter(&buffer);
    // Returns a batch of changes. `generation`: the number of the batch.
    let batch = |generation, manifests: &[&str]| Batch {
        generation: Generation(generation),
        events: match &objects(manifests)[..] {
            [Event::Reset(objects)] => objects.iter().cloned().map(Event::Apply).collect(),
            other => panic!("{other:?}"),
        },
        after_resync: false,
        received: Instant::now(),
    };
    reconciler.apply_batch(batch(2, &[DENY_ALL]));
    reporter.record(&event(&reconciler, Reason::Revoked, 80), &reconciler);
    // This change allows more, so it revokes no flow.
    reconciler.apply_batch(batch(3, &[ALLOW_FAR]));
    reporter.record(&event(&reconciler, Reason::Revoked, 80), &reconciler);
    for flow in flows(&buffer) {
        let revoked = flow.revoked_by.expect("no change");
        assert_eq!((revoked.generation, &revoked.objects[..]), (2, &["NetworkPolicy shop/deny".to_owned()][..]));
    }
    let generations: Vec<u64> = reconciler.batches().map(|batch| batch.change.generation.0).collect();
    assert_eq!(generations, [3, 2, 0]);
}

#[test]
fn flows_that_policies_in_shadow_mode_would_deny_are_counted_by_workload() {
    let shadow = DENY_ALL.replace("namespace: shop}", "namespace: shop, annotations: {netpol.io/mode: shadow}}");
    let reconciler = reconciler_with(&[&shadow]);
    let buffer = FlowBuffer::new(10);
    let mut reporter = reporter(&buffer);
    let deny = PolicyKey::new("shop", "deny");
    assert_eq!(reporter.shadow().since_of(&deny), None);
    // The first call of `summarize` records which policies are in shadow mode.
    reporter.summarize(&reconciler, Instant::now() + Duration::from_secs(1), |_, _, _| 0);
    assert!(reporter.shadow().since_of(&deny).is_some());
    let endpoint = reconciler.endpoint(IfIndex(3)).expect("no endpoint").endpoint;
    let event = FlowEvent {
        rule_set: endpoint.shadow_egress.rule_set,
        flags: event_flags::SHADOW,
        suppressed: 2,
        ..event(&reconciler, Reason::NoRule, 80)
    };
    reporter.record(&event, &reconciler);
    let [flow] = &flows(&buffer)[..] else { panic!("{:?}", flows(&buffer)) };
    let egress = flow.egress.as_ref().expect("no egress");
    assert_eq!((flow.verdict, egress.verdict, &flow.unexplained), (FlowVerdict::Shadow, FlowVerdict::Shadow, &None));
    assert_eq!(egress.policies, ["shop/deny"]);
    let denials = reporter.shadow().denials(std::time::SystemTime::UNIX_EPOCH);
    assert_eq!((denials.len(), denials[0].flows, &denials[0].policies[..]), (1, 3, &["shop/deny".to_owned()][..]));
    assert_eq!(reporter.hits().shadow_denied_of(&deny).map(|hits| hits.flows), Some(3));
}

#[test]
fn flows_that_policies_in_shadow_mode_would_deny_are_in_the_report_even_without_a_record() {
    let shadow = DENY_ALL.replace("namespace: shop}", "namespace: shop, annotations: {netpol.io/mode: shadow}}");
    let reconciler = reconciler_with(&[&shadow]);
    let buffer = FlowBuffer::new(10);
    let mut reporter = reporter(&buffer);
    let endpoint = reconciler.endpoint(IfIndex(3)).expect("no endpoint").endpoint;
    let multicast = FlowEvent {
        rule_set: endpoint.shadow_egress.rule_set,
        flags: event_flags::SHADOW,
        destination: std::array::from_fn(|index| [224, 0, 0, 251].get(index).copied().unwrap_or(0)),
        ..event(&reconciler, Reason::NoRule, 5353)
    };
    reporter.record(&multicast, &reconciler);
    assert!(flows(&buffer).is_empty(), "a multicast event has no record of its own");
    let since = std::time::SystemTime::UNIX_EPOCH;
    let denials = reporter.shadow().denials(since);
    assert_eq!((denials.len(), denials[0].flows, denials[0].port), (1, 1, Some(5353)));
    assert_eq!(reporter.hits().shadow_denied_of(&PolicyKey::new("shop", "deny")).map(|hits| hits.flows), Some(1));
    // If the event budget of a pod is used up, the eBPF programs send no events, and only count them. After ten
    // seconds, the number is added to the report as unlisted flows.
    let suppressed = |_, direction, kind| u64::from((direction, kind) == (Direction::Egress, EventKind::Shadow)) * 40;
    let now = Instant::now();
    reporter.summarize(&reconciler, now + Duration::from_secs(9), suppressed);
    assert_eq!(reporter.shadow().unlisted_flows(since), 0);
    reporter.summarize(&reconciler, now + Duration::from_secs(10), suppressed);
    assert_eq!((reporter.shadow().unlisted_flows(since), reporter.shadow().unlisted_flows_of("shop", since)), (40, 40));
    // The pod sent the packets. A policy for the receiving pod, which can be in another namespace, may deny them.
    assert_eq!(reporter.shadow().unlisted_flows_of("bank", since), 40);
}

#[test]
fn with_observe_a_denied_packet_is_counted_as_if_all_policies_were_in_shadow_mode() {
    let options = Options { observe: true, ..Options::of_node("n1") };
    let reconciler = start_with(Memory::default(), options, &[PODS, DENY_ALL, ALLOW_FAR], &[(3, "10.0.0.2")]);
    let mut reporter = reporter(&FlowBuffer::new(10));
    let observed = FlowEvent { flags: event_flags::OBSERVED, ..event(&reconciler, Reason::NoRule, 81) };
    reporter.record(&observed, &reconciler);
    for policy in ["deny", "far"] {
        let key = PolicyKey::new("shop", policy);
        assert_eq!(reporter.hits().shadow_denied_of(&key).map(|hits| hits.flows), Some(1), "{policy}");
        assert_eq!(reporter.hits().denied_of(&key), None);
    }
}

#[test]
fn a_record_lists_policies_in_shadow_mode_first_and_counts_all_policies() {
    let policy = |number: usize, annotations: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p{number:03}, namespace: shop, \
             annotations: {{{annotations}}}}}, spec: {{podSelector: {{}}, policyTypes: [Egress]}}}}"
        )
    };
    let all: Vec<String> =
        (0..100).map(|number| policy(number, if number == 99 { "netpol.io/mode: shadow" } else { "" })).collect();
    let reconciler = reconciler_with(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let buffer = FlowBuffer::new(10);
    let mut reporter = reporter(&buffer);
    let endpoint = reconciler.endpoint(IfIndex(3)).expect("no endpoint").endpoint;
    let shadow = FlowEvent {
        rule_set: endpoint.shadow_egress.rule_set,
        flags: event_flags::SHADOW,
        ..event(&reconciler, Reason::NoRule, 80)
    };
    reporter.record(&shadow, &reconciler);
    let [flow] = &flows(&buffer)[..] else { panic!("{:?}", flows(&buffer)) };
    let egress = flow.egress.as_ref().expect("no egress");
    assert_eq!((egress.policies.len(), egress.policy_count), (16, Some(100)));
    assert_eq!(egress.policies[..2], ["shop/p099", "shop/p000"]);
    let denials = reporter.shadow().denials(std::time::SystemTime::UNIX_EPOCH);
    assert_eq!((denials.len(), denials[0].policies[0].as_str()), (1, "shop/p099"));
}

#[test]
fn events_beyond_the_limit_are_counted_and_cost_little() {
    let reconciler = reconciler_with(&[ALLOW_FAR]);
    let buffer = FlowBuffer::new(10_000);
    let mut reporter = reporter(&buffer);
    let event = event(&reconciler, Reason::NoRule, 81);
    let started = Instant::now();
    let events = 20_000;
    for _ in 0..events {
        reporter.record(&event, &reconciler);
    }
    // The limit is 1,000 records in each second of the clock. The loop can begin and end in the middle of a second.
    let seconds = started.elapsed().as_secs() + 2;
    let records = buffer.records().len() as u64;
    assert!((1000..=1000 * seconds).contains(&records), "{records} records in {seconds} s");
    assert_eq!(records + reporter.skipped(), events);
    println!("{:.2} µs for each event", started.elapsed().as_secs_f64() * 1e6 / 20_000.0);
}

#[test]
fn a_verdict_from_the_current_objects_is_compared_with_the_reference_evaluator() {
    let mut reconciler = reconciler_with(&[ALLOW_FAR]);
    let buffer = FlowBuffer::new(10);
    let mut reporter = reporter(&buffer);
    // The packet of this event is newer than all changes of the tables.
    let newer = FlowEvent { time_ns: u64::MAX / 2, ..event(&reconciler, Reason::NoRule, 80) };
    let newer_with =
        |reason: Reason, port: u16| FlowEvent { reason: reason as u8, destination_port: port.to_be_bytes(), ..newer };
    // Returns the number of compared verdicts, and of those that differ.
    let mut counts_after = |reconciler: &Reconciler<Memory>, event: FlowEvent| {
        reporter.record(&event, reconciler);
        (reporter.compared_verdicts(), reporter.differing_verdicts())
    };
    assert_eq!(counts_after(&reconciler, newer_with(Reason::NoRule, 80)), (0, 0), "the tables may be incomplete");
    // From now on, the reconciler treats the tables as complete.
    reconciler.update_settled(reconciler.is_fully_applied());
    assert_eq!(
        counts_after(&reconciler, FlowEvent { time_ns: 1, ..newer_with(Reason::NoRule, 80) }),
        (0, 0),
        "the packet is older than the current tables"
    );
    assert_eq!(counts_after(&reconciler, newer_with(Reason::Rule, 80)), (1, 0));
    assert_eq!(counts_after(&reconciler, newer_with(Reason::NoRule, 81)), (2, 0));
    assert_eq!(
        counts_after(&reconciler, newer_with(Reason::Revoked, 80)),
        (2, 0),
        "a revoked flow is not compared: its verdict depends on an earlier packet"
    );
    assert_eq!(counts_after(&reconciler, newer_with(Reason::NoRule, 80)), (3, 1), "the verdict differs");
    assert_eq!(counts_after(&reconciler, newer_with(Reason::NotIsolated, 80)), (4, 2), "the reason differs");
    let other_policies = FlowEvent { rule_set: RuleSetId::default(), ..newer_with(Reason::Rule, 80) };
    assert_eq!(counts_after(&reconciler, other_policies), (5, 3), "the policies differ");
    let unexplained: Vec<_> = flows(&buffer).into_iter().map(|flow| flow.unexplained).collect();
    assert_eq!(
        unexplained[5].as_deref(),
        Some("the reference evaluator has another verdict, which is a bug of netpol")
    );
    replace_objects(&mut reconciler, &[PODS, DENY_ALL]);
    assert_eq!(counts_after(&reconciler, newer_with(Reason::NoRule, 80)), (5, 3), "the endpoint has changed");
}
