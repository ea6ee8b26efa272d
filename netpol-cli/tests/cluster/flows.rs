//! `netpol flows` and `netpol top`.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use expect_test::expect;
use netpol_api::{
    FlowDirection, FlowEnd, FlowEndReason, FlowTotalsRecord, FlowVerdict, IntervalCounts, LostRecord, MulticastRecord,
    RateLimitedRecord, Record, RevokedBy, TrafficCounts,
};
use serde_json::json;

use crate::agents::{Agent, Behavior, Cluster};
use crate::fixtures::{allowed, denied, header, record, totals};

/// Starts a cluster with two nodes. Sorted by time, their flows alternate.
fn two_nodes() -> Cluster {
    let first = Agent::default().flows([record(denied("12:03:04.123", "n1")), record(allowed("12:03:06", "n1"))]);
    let second = Agent::default().flows([record(allowed("12:03:03.9", "n2")), record(denied("12:03:05.25", "n2"))]);
    Cluster::start(&[("n1", Behavior::Responds, first), ("n2", Behavior::Responds, second)])
}

#[test]
fn flows_of_all_nodes_are_sorted_by_time() {
    let cluster = two_nodes();
    let run = cluster.netpol(&["flows", "-n", "shop"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    expect![[r#"
        12:03:03.900 ALLOWED shop/web-0:41234 → [2001:db8::1]:443/TCP  rule  shop/web spec.egress[1] (egress)
        12:03:04.123 DENIED  shop/web-0:41234 → shop/db-0:5432/TCP  no-rule  shop/db (ingress) +3
        12:03:05.250 DENIED  shop/web-0:41234 → shop/db-0:5432/TCP  no-rule  shop/db (ingress) +3
        12:03:06.000 ALLOWED shop/web-0:41234 → [2001:db8::1]:443/TCP  rule  shop/web spec.egress[1] (egress)
    "#]]
    .assert_eq(&run.out);
    let run = cluster.netpol(&["flows", "-n", "shop", "--last", "2"]);
    assert_eq!(run.out.lines().count(), 2);
    assert!(run.out.starts_with("12:03:05.250"), "{}", run.out);
}

#[test]
fn wide_output_has_the_nearest_rule_and_a_fix_to_paste() {
    let mut revoked = denied("12:03:04.5", "n1");
    revoked.reason = "revoked".into();
    revoked.revoked_by = Some(RevokedBy {
        objects: vec!["NetworkPolicy shop/db".into()],
        object_count: 1,
        generation: 12,
        time: "2026-11-29T12:03:04Z".into(),
    });
    revoked.from = FlowEnd {
        address: Some([192, 0, 2, 1].into()),
        blocks: vec!["shop/db spec.ingress[1]: 192.0.2.0/24".into()],
        ..FlowEnd::default()
    };
    revoked.hints = vec!["a hint".into()];
    let agent = Agent::default().flows([record(denied("12:03:04.123", "n1")), record(revoked)]);
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent)]);
    let run = cluster.netpol(&["flows", "-A", "-o", "wide"]);
    expect![[r#"
        12:03:04.123 DENIED  shop/web-0:41234 → shop/db-0:5432/TCP  no-rule  shop/db (ingress) +3
                     ingress: denied by shop/db (no-rule)
                     nearest rule: shop/db spec.ingress[0]: from[0].podSelector: the source has no label role=backend
                     fix: add to NetworkPolicy shop/db at spec.ingress:
                       - from:
                         - podSelector:
                             matchLabels:
                               app: web
        12:03:04.500 DENIED  192.0.2.1 → shop/db-0:5432/TCP  revoked  shop/db (ingress) +3
                     revoked by a change of NetworkPolicy shop/db at 2026-11-29T12:03:04Z (generation 12)
                     source is in shop/db spec.ingress[1]: 192.0.2.0/24
                     hint: a hint
                     ingress: denied by shop/db (no-rule)
                     nearest rule: shop/db spec.ingress[0]: from[0].podSelector: the source has no label role=backend
                     fix: add to NetworkPolicy shop/db at spec.ingress:
                       - from:
                         - podSelector:
                             matchLabels:
                               app: web
    "#]]
    .assert_eq(&run.out);
}

#[test]
fn json_output_has_the_lines_that_agents_sent() {
    // U+202E (right-to-left override) could change how a terminal shows the line, so it must be escaped.
    let unknown = json!({"type": "of-a-later-version", "time": "2026-11-29T12:03:05Z", "name": "\u{202e}x"});
    let agent = Agent::default().flows([json!(record(denied("12:03:04.123", "n1"))), unknown]);
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent)]);
    let run = cluster.netpol(&["flows", "-A", "-o", "json"]);
    let lines: Vec<&str> = run.out.lines().collect();
    let parsed: Record = serde_json::from_str(lines[0]).expect("a record");
    assert_eq!(parsed, record(denied("12:03:04.123", "n1")));
    assert!(lines[1].contains("\\u202ex"), "{}", lines[1]);
    let run = cluster.netpol(&["flows", "-A"]);
    assert_eq!(run.out.lines().count(), 1);
    assert_eq!(run.err, "netpol: 1 record of an unknown type is not shown; use -o json, or a newer netpol\n");
}

#[test]
fn records_that_summarize_flows_are_printed_as_lines() {
    let records = [
        Record::Multicast(Box::new(MulticastRecord {
            header: header("12:00:01", "n1"),
            verdict: FlowVerdict::Denied,
            direction: FlowDirection::Egress,
            reason: "no-rule".into(),
            to: FlowEnd { address: Some([224, 0, 0, 251].into()), ..FlowEnd::default() },
            protocol: "UDP".into(),
            port: Some(5_353),
            packets: 12,
            senders: vec!["shop/a".into(), "shop/b".into(), "shop/c".into()],
            sender_count: 9,
        })),
        Record::RateLimited(RateLimitedRecord {
            header: header("12:00:02", "n1"),
            verdict: FlowVerdict::Denied,
            direction: FlowDirection::Egress,
            pod: "shop/a".into(),
            suppressed: 120,
        }),
        Record::RateLimited(RateLimitedRecord {
            header: header("12:00:02", "n1"),
            verdict: FlowVerdict::Shadow,
            direction: FlowDirection::Ingress,
            pod: "shop/b".into(),
            suppressed: 7,
        }),
        Record::Lost(LostRecord { header: header("12:00:03", "n1"), records: 40 }),
    ];
    let cluster = Cluster::start(&[("n1", Behavior::Responds, Agent::default().flows(records))]);
    let run = cluster.netpol(&["flows", "-A"]);
    expect![[r#"
        12:00:01.000 DENIED  shop/a, shop/b +7 → 224.0.0.251:5353/UDP  no-rule (egress), 12 packets to a group
        12:00:02.000 ...     shop/a: 120 denied packets without a record (egress), beyond the pod's rate limit
        12:00:02.000 ...     shop/b: 7 would-be denials without a record (ingress), beyond the pod's rate limit
        12:00:03.000 ...     node n1: 40 records lost, this command reads too slowly
    "#]]
    .assert_eq(&run.out);
}

#[test]
fn totals_are_lines_with_packets_and_bytes_and_are_filtered() {
    let large = TrafficCounts { packets: 1, bytes: 1023, reply_packets: 2_000_000, reply_bytes: 5 << 30 };
    let interval = Some(IntervalCounts { since: "2026-11-29T12:02:00Z".into(), counts: large });
    let mut to_service = totals("12:03:02", FlowEndReason::Timeout);
    to_service.to.services = vec!["shop/db".into()];
    let records = [
        totals("12:03:01", FlowEndReason::Closed),
        to_service,
        FlowTotalsRecord { interval, ended: None, ..totals("12:03:03", FlowEndReason::Closed) },
    ]
    .map(|totals| Record::FlowTotals(Box::new(totals)));
    let cluster = Cluster::start(&[("n1", Behavior::Responds, Agent::default().flows(records))]);
    let run = cluster.netpol(&["flows", "-A"]);
    expect![[r#"
        12:03:01.000 ENDED   shop/web-0:41234 → [2001:db8::1]:443/TCP  12 packets 3.4 KiB / 10 packets 1.2 KiB  closed (egress)
        12:03:02.000 ENDED   shop/web-0:41234 → svc/shop/db:443/TCP  12 packets 3.4 KiB / 10 packets 1.2 KiB  timeout (egress)
        12:03:03.000 ACTIVE  shop/web-0:41234 → [2001:db8::1]:443/TCP  1 packet 1023 B / 2000000 packets 5.0 GiB (egress)
    "#]].assert_eq(&run.out);
    for (arguments, lines) in [(["--to", "svc/db"], 1), (["--from", "deploy/web"], 3), (["--from", "sts/web"], 0)] {
        let run = cluster.netpol(&[&["flows", "-n", "shop"][..], &arguments].concat());
        assert_eq!(run.out.lines().count(), lines, "{arguments:?}: {}", run.out);
    }
}

#[test]
fn agents_receive_the_filters_that_they_support() {
    let cluster = two_nodes();
    for (arguments, query) in [
        (&["flows"][..], "last=100&namespace=kube-system"),
        (&["flows", "-A"], "last=100"),
        (&["flows", "-A", "--since", "5m"], "since=300s"),
        (&["flows", "-A", "--since", "5m", "--last", "3"], "since=300s&last=3"),
        (&["flows", "-n", "shop", "--verdict", "denied,shadow"], "last=100&verdict=denied,shadow&namespace=shop"),
        (&["flows", "--from", "shop/web-0", "--port", "53"], "last=100&from=shop/web-0&port=53"),
        (&["flows", "-n", "shop", "--to", "web-0"], "last=100&to=shop/web-0&namespace=shop"),
        (&["flows", "-A", "--to", "10.0.0.1/8"], "last=100&to=10.0.0.0/8"),
        (&["flows", "-n", "shop", "--policy", "db"], "last=100&policy=shop/db&namespace=shop"),
        (&["flows", "--policy", "shop/db"], "last=100&policy=shop/db"),
        // Agents cannot filter by label or workload. So the command does this, and applies `last` afterwards.
        (&["flows", "-A", "-l", "app=web"], "labels=true"),
        (&["flows", "-n", "shop", "--from", "deploy/web"], "from=shop/*&namespace=shop"),
    ] {
        let run = cluster.netpol(arguments);
        assert_eq!(run.code, 0, "{arguments:?}: {}", run.err);
        let expected = format!("/v1/flows?{query}");
        // Each of the two agents receives the same request.
        assert_eq!(cluster.requests(), [expected.as_str(); 2], "{arguments:?}");
    }
}

#[test]
fn workloads_services_and_labels_are_filtered_by_the_command() {
    let mut labeled = denied("12:00:01", "n1");
    labeled.from.labels = Some([("app".to_owned(), "web".to_owned())].into());
    let mut to_service = allowed("12:00:02", "n1");
    to_service.to.services = vec!["shop/db".into()];
    to_service.from.workload = None;
    let agent = Agent::default().flows([record(labeled), record(to_service)]);
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent)]);
    for (arguments, times) in [
        (&["--from", "deploy/web"][..], &["12:00:01.000"][..]),
        (&["--from", "sts/web"], &[]),
        (&["--to", "sts/shop/db"], &["12:00:01.000"]),
        (&["--to", "svc/db"], &["12:00:02.000"]),
        (&["-l", "app=web"], &["12:00:01.000"]),
        (&["-l", "app notin (web)"], &[]),
        (&[], &["12:00:01.000", "12:00:02.000"]),
    ] {
        let run = cluster.netpol(&[&["flows", "-n", "shop"], arguments].concat());
        let found: Vec<&str> = run.out.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(found, times, "{arguments:?} {}", run.err);
    }
    for arguments in [&["--from", "a/b/c"][..], &["--since", "5"], &["--verdict", "no"], &["-n", "a", "-A"]] {
        assert_eq!(cluster.netpol(&[&["flows"], arguments].concat()).code, 2, "{arguments:?}");
    }
}

#[test]
fn nodes_with_an_incomplete_response_or_without_a_response_are_reported() {
    let flows = || Agent::default().flows((0..50).map(|second| record(denied(&format!("12:00:{second:02}"), "n1"))));
    let cluster = Cluster::start(&[
        ("n1", Behavior::Responds, flows()),
        ("n2", Behavior::Cut(4_000), flows()),
        ("n3", Behavior::Silent, flows()),
    ]);
    let run = cluster.netpol(&["flows", "-A", "--since", "1h"]);
    assert_eq!(run.code, 5);
    assert!(run.out.lines().count() > 50, "the output must have all flows of n1, and some of n2");
    let lines: Vec<&str> = run.err.lines().collect();
    assert!(lines[0].starts_with("node n2: connection closed: "), "{}", run.err);
    assert!(lines[1].starts_with("node n3: no response within 1500ms"), "{}", run.err);
    // The third line is the number of nodes that did not respond.
    assert_eq!(lines.len(), 3, "{}", run.err);
}

#[test]
fn flows_that_a_filter_hides_count_as_a_response_of_the_node() {
    let mut labeled = denied("12:00:09", "n1");
    labeled.from.labels = Some([("app".to_owned(), "web".to_owned())].into());
    // The agent needs one second for all five flows, which is longer than `--request-timeout`. But it is never silent
    // for so long: it sends flows that the filter hides.
    let others = (0..4).map(|second| record(denied(&format!("12:00:0{second}"), "n1")));
    let agent = Agent::default().flows(others).flows([record(labeled)]).paced(Duration::from_millis(200));
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent)]);
    let run = cluster.netpol(&["flows", "-A", "-l", "app=web", "--request-timeout", "700ms"]);
    assert_eq!((run.code, run.err.as_str(), run.out.lines().count()), (0, "", 1), "{}", run.out);
}

#[test]
fn follow_prints_the_last_flows_and_names_nodes_without_a_response() {
    let flows = (0..30).map(|second| record(denied(&format!("12:00:{second:02}"), "n1")));
    let cluster = Cluster::start(&[
        ("n1", Behavior::Responds, Agent::default().flows(flows)),
        ("n2", Behavior::Silent, Agent::default()),
    ]);
    let start = Instant::now();
    let mut child = cluster.spawn(&["flows", "-A", "-f", "--last", "3", "--request-timeout", "500ms"]);
    let out = BufReader::new(child.stdout.take().expect("its output"));
    let times: Vec<String> = out.lines().take(3).map(|line| line.expect("a line")[..8].to_owned()).collect();
    assert_eq!(times, ["12:00:27", "12:00:28", "12:00:29"]);
    let mut error = String::new();
    BufReader::new(child.stderr.take().expect("its errors")).read_line(&mut error).expect("a line");
    assert!(error.starts_with("node n2: no response within 500ms"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    child.kill().expect("netpol still runs");
    child.wait().expect("netpol ends");
    assert_eq!(cluster.requests(), ["/v1/flows?follow=true&last=3"]);
}

#[test]
fn top_counts_a_flow_of_two_nodes_once() {
    // Both nodes report the same flow: the sender's node for egress, the receiver's node for ingress. `denied` returns
    // a record with a `suppressed` of 3. In an allowed record, such as `at_sender` and `at_receiver`, 3 is the number
    // of further flows, so the record counts as four flows. In a denied record, 3 is the number of further packets of
    // the same flow, so the record counts as one flow.
    let mut at_sender = denied("12:00:00", "n2");
    (at_sender.direction, at_sender.verdict) = (FlowDirection::Egress, FlowVerdict::Allowed);
    let mut at_receiver = at_sender.clone();
    at_receiver.direction = FlowDirection::Ingress;
    let cluster = Cluster::start(&[
        ("n1", Behavior::Responds, Agent::default().flows([record(at_receiver), record(denied("12:00:01", "n1"))])),
        ("n2", Behavior::Responds, Agent::default().flows([record(at_sender), record(allowed("12:00:02", "n2"))])),
    ]);
    let run = cluster.netpol(&["top", "-n", "shop", "--once", "--since", "10m"]);
    expect![[r#"
        FROM                 TO                   PORT      DENIED  SHADOW  ALLOWED
        shop/deployment/web  shop/statefulset/db  5432/TCP       1       0        4
        shop/deployment/web  2001:db8::1          443/TCP        0       0        1
    "#]]
    .assert_eq(&run.out);
    assert_eq!(cluster.requests(), ["/v1/flows?since=600s&namespace=shop"; 2]);
    let run = cluster.netpol(&["top", "-n", "shop", "-o", "json"]);
    let output: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!((&output["items"][0]["denied"], &output["items"][0]["allowed"]), (&json!(1), &json!(4)));
    assert_eq!(output["items"][0]["from"]["workload"]["name"], "web");
}
