//! Responses of agents.

use netpol_api::{
    ConditionResult, Directions, Endpoint, Fix, FlowDirection, FlowEnd, FlowEndReason, FlowRecord, FlowRule, FlowSide,
    FlowTotalsRecord, FlowVerdict, GateStatus, MapStatus, PolicyList, PolicyMode, PolicyStatus, RECORD_SCHEMA, Record,
    RecordHeader, RuleStatus, ShadowDenial, ShadowPolicy, ShadowReport, Status, TrafficCounts, WaitOutcome,
    WaitResponse, Workload, WorkloadEnd,
};
use serde_json::{Value, json};

pub(crate) fn status(node: &str) -> Status {
    Status {
        version: "0.1.0".into(),
        node: node.into(),
        source: "kube".into(),
        ready: true,
        generation_received: 12,
        generation: 12,
        last_change_time: None,
        pending: Vec::new(),
        endpoints: vec![endpoint("shop/web-0", "veth1", "10.0.0.1")],
        partial_policies: Vec::new(),
        gate: GateStatus { mode: "nri".into(), ..GateStatus::default() },
        observe: false,
        suspensions: Vec::new(),
        flows: netpol_api::FlowCounts { denied_packets: 7, ..netpol_api::FlowCounts::default() },
        conflicts: Vec::new(),
        maps: vec![MapStatus { name: "PORTS".into(), entries: Some(120), capacity: 1_000, full: 0 }],
        warnings: Vec::new(),
    }
}

/// An endpoint. `address` may be IPv6.
pub(crate) fn endpoint(pod: &str, interface: &str, address: &str) -> Endpoint {
    Endpoint {
        ifindex: 7,
        interface: interface.into(),
        pod: Some(pod.into()),
        addresses: vec![address.parse().expect("an address")],
        attached: true,
        orphaned: false,
        conflict: None,
        unlisted_addresses: Vec::new(),
        policies: Directions { ingress: vec!["shop/db".into(), "shop/default-deny".into()], egress: Vec::new() },
        shadow_policies: Directions::default(),
    }
}

pub(crate) fn list(node: &str, items: &[impl serde::Serialize]) -> Value {
    json!({"node": node, "generation": 12, "items": items})
}

/// A denied flow from `shop/web-0` to `shop/db-0`. `time` has the form `12:03:04.123`.
pub(crate) fn denied(time: &str, node: &str) -> FlowRecord {
    let pod = |name: &str, workload: &str, kind: &str, port| FlowEnd {
        namespace: Some("shop".into()),
        pod: Some(name.into()),
        workload: Some(Workload { kind: kind.into(), name: workload.into() }),
        address: Some([10, 0, 0, 1].into()),
        port,
        ..FlowEnd::default()
    };
    FlowRecord {
        header: header(time, node),
        verdict: FlowVerdict::Denied,
        direction: FlowDirection::Ingress,
        reason: "no-rule".into(),
        from: pod("web-0", "web", "Deployment", Some(41_234)),
        to: pod("db-0", "db", "StatefulSet", Some(5_432)),
        protocol: "TCP".into(),
        port: Some(5_432),
        egress: None,
        ingress: Some(FlowSide {
            verdict: FlowVerdict::Denied,
            reason: "no-rule".into(),
            policies: vec!["shop/db".into()],
            policy_count: None,
            rule: None,
            nearest: Some(FlowRule {
                policy: "shop/db".into(),
                path: "spec.ingress[0]".into(),
                unmet_conditions: vec!["from[0].podSelector: the source has no label role=backend".into()],
            }),
            fix: Some(Fix {
                policy: "shop/db".into(),
                path: "spec.ingress".into(),
                yaml: "- from:\n  - podSelector:\n      matchLabels:\n        app: web\n".into(),
            }),
            fix_omitted: false,
        }),
        unexplained: None,
        revoked_by: None,
        sender: None,
        hints: Vec::new(),
        suppressed: 3,
        length: 60,
    }
}

/// An allowed flow to an IPv6 address.
pub(crate) fn allowed(time: &str, node: &str) -> FlowRecord {
    let rule = FlowRule { policy: "shop/web".into(), path: "spec.egress[1]".into(), unmet_conditions: Vec::new() };
    FlowRecord {
        verdict: FlowVerdict::Allowed,
        direction: FlowDirection::Egress,
        reason: "rule".into(),
        to: FlowEnd { address: "2001:db8::1".parse().ok(), port: Some(443), ..FlowEnd::default() },
        port: Some(443),
        ingress: None,
        egress: Some(FlowSide {
            verdict: FlowVerdict::Allowed,
            reason: "rule".into(),
            policies: vec!["shop/web".into()],
            policy_count: None,
            rule: Some(rule),
            nearest: None,
            fix: None,
            fix_omitted: false,
        }),
        suppressed: 0,
        ..denied(time, node)
    }
}

/// The totals of the flow that [`allowed`] returns.
pub(crate) fn totals(time: &str, ending: FlowEndReason) -> FlowTotalsRecord {
    let flow = allowed(time, "n1");
    FlowTotalsRecord {
        header: flow.header,
        direction: flow.direction,
        from: flow.from,
        to: flow.to,
        protocol: flow.protocol,
        port: flow.port,
        started: "2026-11-29T12:00:00Z".into(),
        last_seen: "2026-11-29T12:03:00Z".into(),
        total: TrafficCounts { packets: 12, bytes: 3481, reply_packets: 10, reply_bytes: 1229 },
        interval: None,
        ended: Some(ending),
    }
}

pub(crate) fn record(flow: FlowRecord) -> Record {
    Record::Flow(Box::new(flow))
}

pub(crate) fn header(time: &str, node: &str) -> RecordHeader {
    RecordHeader { schema: RECORD_SCHEMA.into(), time: format!("2026-11-29T{time}Z"), node: node.into() }
}

/// The policies of a node: one policy with two rules. The first rule has `flows` flows, and the second rule has none.
pub(crate) fn policies(node: &str, pods: &[&str], flows: u64) -> PolicyList {
    let rule = |index: u8, flows: u64| RuleStatus {
        path: format!("spec.ingress[{index}]"),
        direction: FlowDirection::Ingress,
        flows,
        last_flow: (flows > 0).then(|| "2026-11-29T12:00:00Z".into()),
    };
    PolicyList {
        node: node.into(),
        generation: 12,
        counted_since: "2026-11-29T11:00:00Z".into(),
        counts_allowed_flows: true,
        uncounted_flows: 0,
        items: vec![PolicyStatus {
            namespace: "shop".into(),
            name: "db".into(),
            mode: PolicyMode::Enforce,
            suspended_until: None,
            evaluated: true,
            not_evaluated_because: None,
            directions: vec![FlowDirection::Ingress],
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
            rules: vec![rule(0, flows), rule(1, 0)],
            denied_flows: flows,
            last_denied: None,
            shadow_denied_flows: 0,
            diagnostics: Vec::new(),
            partial: None,
        }],
    }
}

/// A report of a policy in shadow mode, with this number of flows.
pub(crate) fn shadow(node: &str, flows: u64) -> ShadowReport {
    let end = |kind: &str, name: &str| WorkloadEnd {
        namespace: Some("shop".into()),
        workload: Some(Workload { kind: kind.into(), name: name.into() }),
        ..WorkloadEnd::default()
    };
    let time = |time: &str| format!("2026-11-29T{time}Z");
    let denial = ShadowDenial {
        policies: vec!["shop/db-next".into()],
        direction: FlowDirection::Ingress,
        from: end("Deployment", "web"),
        to: end("StatefulSet", "db"),
        protocol: "TCP".into(),
        port: Some(5_432),
        reason: "no-rule".into(),
        flows,
        first: time("11:30:00"),
        last: time("11:59:00"),
    };
    ShadowReport {
        node: node.into(),
        generation: 12,
        since: time("11:00:00"),
        collected_since: time("10:00:00"),
        observe: false,
        policies: vec![ShadowPolicy {
            policy: "shop/db-next".into(),
            pods: 1,
            since: time("11:15:00"),
            evaluated: true,
            not_evaluated_because: None,
            unlisted_flows: 0,
        }],
        unlisted_flows: 0,
        items: if flows > 0 { vec![denial] } else { Vec::new() },
    }
}

pub(crate) fn waited(node: &str, result: WaitOutcome) -> WaitResponse {
    WaitResponse {
        node: node.into(),
        results: vec![ConditionResult {
            condition: "policy/shop/db".into(),
            result,
            generation: Some(12),
            seconds: 0.25,
            pods: vec!["shop/db-0".into()],
            pending: Vec::new(),
            reason: None,
        }],
    }
}
