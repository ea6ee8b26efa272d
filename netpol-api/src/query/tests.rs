//! Tests that [`FlowQuery`] selects the right records.

use super::*;
use crate::{
    FlowDirection, FlowEndReason, FlowRule, FlowTotalsRecord, MulticastRecord, RECORD_SCHEMA, RateLimitedRecord,
    RecordHeader, TrafficCounts,
};

fn header() -> RecordHeader {
    RecordHeader { schema: RECORD_SCHEMA.into(), time: "2026-01-01T00:00:00.000Z".into(), node: "n1".into() }
}

fn pod(namespace: &str, name: &str, address: [u8; 4]) -> FlowEnd {
    FlowEnd {
        namespace: Some(namespace.into()),
        pod: Some(name.into()),
        address: Some(address.into()),
        ..FlowEnd::default()
    }
}

/// A denied DNS request from the pod shop/web to 10.0.0.10. The policy shop/web-policy isolates the pod.
fn denied_dns_request() -> FlowRecord {
    FlowRecord {
        header: header(),
        verdict: FlowVerdict::Denied,
        direction: FlowDirection::Egress,
        reason: "no-rule".into(),
        from: pod("shop", "web", [10, 1, 0, 1]),
        to: FlowEnd { address: Some([10, 0, 0, 10].into()), ..FlowEnd::default() },
        protocol: "UDP".into(),
        port: Some(53),
        egress: Some(FlowSide {
            verdict: FlowVerdict::Denied,
            reason: "no-rule".into(),
            policies: vec!["shop/web-policy".into()],
            policy_count: None,
            rule: None,
            nearest: Some(FlowRule {
                policy: "shop/web-policy".into(),
                path: "spec.egress[0]".into(),
                unmet_conditions: Vec::new(),
            }),
            fix: None,
            fix_omitted: false,
        }),
        ingress: None,
        unexplained: None,
        revoked_by: None,
        sender: None,
        hints: Vec::new(),
        suppressed: 0,
        length: 60,
    }
}

#[test]
fn flow_totals_are_selected_like_allowed_flows() {
    let flow = denied_dns_request();
    let totals = Record::FlowTotals(Box::new(FlowTotalsRecord {
        header: header(),
        direction: flow.direction,
        from: flow.from,
        to: flow.to,
        protocol: flow.protocol,
        port: flow.port,
        started: header().time,
        last_seen: header().time,
        total: TrafficCounts { packets: 1, bytes: 60, reply_packets: 2, reply_bytes: 120 },
        interval: None,
        ended: Some(FlowEndReason::PodDeleted),
    }));
    let json = serde_json::to_value(&totals).expect("cannot serialize the record");
    assert_eq!(
        (&json["type"], &json["ended"], &json["replyBytes"]),
        (&"flowTotals".into(), &"podDeleted".into(), &120.into())
    );
    assert_eq!(serde_json::from_value::<Record>(json).expect("a record"), totals);
    for (query, matches) in [
        ("", true),
        ("verdict=allowed", true),
        ("verdict=denied,shadow", false),
        ("from=shop/web", true),
        ("from=10.0.0.0/8&to=10.0.0.10", true),
        ("to=10.0.0.11", false),
        ("port=53/UDP&namespace=shop", true),
        ("port=53/TCP", false),
        ("namespace=bank", false),
        // Totals contain no policies.
        ("policy=shop/web-policy", false),
    ] {
        let parsed = FlowQuery::parse(query).expect(query);
        assert_eq!(parsed.matches(&totals), matches, "{query}");
    }
}

#[test]
fn each_parameter_selects_records() {
    let record = Record::Flow(Box::new(denied_dns_request()));
    for (query, matches) in [
        ("", true),
        ("follow=true&since=5m&last=100&labels=true", true),
        ("verdict=denied", true),
        ("verdict=allowed,denied", true),
        ("verdict=allowed&verdict=shadow", false),
        ("from=shop/web", true),
        ("from=shop%2Fweb", true),
        ("from=shop/*", true),
        ("from=shop/db", false),
        ("from=10.1.0.0/16", true),
        ("from=10.1.0.2", false),
        ("to=10.0.0.10", true),
        ("to=fd00::/8", false),
        ("to=shop/web", false),
        ("port=53", true),
        ("port=53/udp", true),
        ("port=53/TCP", false),
        ("policy=shop/web-policy", true),
        ("policy=shop/other", false),
        ("namespace=shop", true),
        ("namespace=bank", false),
        ("namespace=shop&verdict=denied&port=54", false),
    ] {
        let parsed = FlowQuery::parse(query).expect(query);
        assert_eq!(parsed.matches(&record), matches, "{query}");
        assert_eq!(FlowQuery::parse(&parsed.to_query()), Ok(parsed), "{query}");
    }
}

#[test]
fn a_query_for_the_sender_selects_its_spoofed_packets() {
    let mut spoofed = denied_dns_request();
    spoofed.from = FlowEnd { address: Some([192, 0, 2, 1].into()), ..FlowEnd::default() };
    // The pod that sent the packet, with an address that is not its own.
    spoofed.sender = Some("bad/flood".into());
    let record = Record::Flow(Box::new(spoofed));
    for (query, matches) in [("from=bad/flood", true), ("namespace=bad", true), ("from=shop/web", false)] {
        assert_eq!(FlowQuery::parse(query).expect(query).matches(&record), matches, "{query}");
    }
}

#[test]
fn rate_limited_records_match_by_namespace_and_verdict() {
    let record = Record::RateLimited(RateLimitedRecord {
        header: header(),
        verdict: FlowVerdict::Denied,
        direction: FlowDirection::Egress,
        pod: "shop/web".into(),
        suppressed: 5,
    });
    for (query, matches) in [
        ("", true),
        ("namespace=shop", true),
        ("namespace=bank", false),
        ("verdict=allowed", false),
        ("port=53", false),
    ] {
        assert_eq!(FlowQuery::parse(query).expect(query).matches(&record), matches, "{query}");
    }
}

#[test]
fn multicast_records_match_by_their_senders_and_the_group() {
    let record = Record::Multicast(Box::new(MulticastRecord {
        header: header(),
        verdict: FlowVerdict::Denied,
        direction: FlowDirection::Egress,
        reason: "no-rule".into(),
        to: FlowEnd { address: Some([224, 0, 0, 251].into()), ..FlowEnd::default() },
        protocol: "UDP".into(),
        port: Some(5_353),
        packets: 12,
        senders: vec!["shop/a".into(), "bank/b".into(), "192.0.2.9".into()],
        sender_count: 3,
    }));
    for (query, matches) in [
        ("from=shop/a", true),
        ("from=bank/*", true),
        ("from=shop/other", false),
        ("from=10.0.0.1", false),
        ("from=192.0.2.0/24", true),
        ("to=224.0.0.0/24&port=5353/UDP", true),
        ("to=10.0.0.1", false),
        ("policy=shop/p", false),
    ] {
        assert_eq!(FlowQuery::parse(query).expect(query).matches(&record), matches, "{query}");
    }
}

#[test]
fn an_invalid_query_is_an_error_with_the_accepted_values() {
    for (query, part) in [
        ("watch=true", "use follow, since, last"),
        ("follow=maybe", "true or false"),
        ("since=5", "500ms"),
        ("since=2h", "maximum is 1h"),
        ("last=many", "number of records"),
        ("verdict=deny", "allowed, denied or shadow"),
        ("from=web", "NAMESPACE/POD, NAMESPACE/*, an address or a CIDR"),
        ("to=a/b/c", "NAMESPACE/POD"),
        ("port=http", "53/UDP"),
        ("port=53/ICMP", "53/UDP"),
        ("policy=web", "NAMESPACE/NAME"),
        ("namespace=A", "name of a namespace"),
        ("from=%zz", "percent-encoded"),
    ] {
        let error = FlowQuery::parse(query).expect_err(query);
        assert!(error.contains(part), "{query}: {error}");
    }
}
