//! Tests which flow records arrive at an OpenTelemetry collector and in files.

mod collector;
mod schema;

use std::time::Instant;

use netpol_api::{FlowDirection, FlowEnd, FlowRecord, FlowVerdict, RECORD_SCHEMA, RateLimitedRecord, RecordHeader};
use serde_json::{Value, json};

use super::*;
use collector::{Answer, Collector};

fn header() -> RecordHeader {
    RecordHeader {
        schema: RECORD_SCHEMA.to_owned(),
        time: "2026-11-29T07:46:52.120Z".to_owned(),
        node: "node-1".to_owned(),
    }
}

fn pod(namespace: &str, name: &str, address: &str) -> FlowEnd {
    FlowEnd {
        namespace: Some(namespace.to_owned()),
        pod: Some(name.to_owned()),
        address: address.parse().ok(),
        ..FlowEnd::default()
    }
}

fn flow(verdict: FlowVerdict, port: u16) -> Arc<Record> {
    Arc::new(Record::Flow(Box::new(FlowRecord {
        header: header(),
        verdict,
        direction: FlowDirection::Egress,
        reason: "no-rule".to_owned(),
        from: pod("shop", "web", "10.1.0.5"),
        to: pod("shop", "db", "10.1.0.6"),
        protocol: "TCP".to_owned(),
        port: Some(port),
        egress: None,
        ingress: None,
        unexplained: None,
        revoked_by: None,
        sender: None,
        hints: vec!["first".to_owned(), "second\u{202e}".to_owned()],
        suppressed: 3,
        length: 60,
    })))
}

fn rate_limited() -> Arc<Record> {
    let (header, pod) = (header(), "shop/web".to_owned());
    Arc::new(Record::RateLimited(RateLimitedRecord {
        header,
        verdict: FlowVerdict::Denied,
        direction: FlowDirection::Egress,
        pod,
        suppressed: 7,
    }))
}

fn start(target: Target) -> (Exporters, ExportThreads) {
    Exporters::start(&[target], "node-1").expect("cannot start a thread")
}

fn wait_until(condition: &str, is_met: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_met() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not within 20 s: {condition}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns how many records the only target has exported, and how many it has dropped, in the order of
/// [`DropReason::ALL`]: queue full, write failed, rejected, expired.
fn counts(exporters: &Exporters) -> (u64, [u64; 4]) {
    let (_, counters) = exporters.counters().next().expect("no target");
    (counters.exported(), DropReason::ALL.map(|reason| counters.dropped(reason)))
}

fn finish(threads: ExportThreads) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("no runtime");
    runtime.block_on(threads.finish());
}

#[test]
fn a_collector_receives_the_records_as_log_records_of_otlp() {
    let collector = Collector::start(vec![]);
    let (exporters, threads) = start(Target::Otlp(collector.endpoint("/base/v1/logs")));
    let records = [flow(FlowVerdict::Denied, 80), flow(FlowVerdict::Allowed, 443), rate_limited()];
    for record in &records {
        exporters.push(record);
    }
    // When the agent stops, the batch is sent at once.
    drop(exporters);
    finish(threads);

    let request = collector.request();
    assert_eq!((&*request.method, &*request.path), ("POST", "/base/v1/logs"));
    assert_eq!(request.content_type, "application/json");
    schema::check("ExportLogsServiceRequest", &request.body);
    let resource = schema::attributes(&request.body["resourceLogs"][0]["resource"]);
    assert_eq!(resource["service.name"], "netpol-agent");
    assert_eq!(resource["k8s.node.name"], "node-1");

    let logs = &request.body["resourceLogs"][0]["scopeLogs"][0]["logRecords"];
    assert_eq!(logs.as_array().map(Vec::len), Some(3));
    // The severity numbers of OpenTelemetry: 9 is INFO, 13 is WARN.
    for (log, (record, severity, event)) in logs.as_array().into_iter().flatten().zip(
        records
            .iter()
            .zip([(13, "netpol.flow"), (9, "netpol.flow"), (13, "netpol.rateLimited")])
            .map(|(record, (severity, event))| (record, severity, event)),
    ) {
        assert_eq!((&log["severityNumber"], &log["eventName"]), (&json!(severity), &json!(event)));
        assert_eq!(log["timeUnixNano"], "1795938412120000000");
        assert_eq!(schema::value(&log["body"]), serde_json::to_value(record).expect("no JSON"));
    }
    let expected = json!({
        "netpol.verdict": "denied", "netpol.direction": "egress", "netpol.reason": "no-rule", "netpol.protocol": "TCP",
        "netpol.source.namespace": "shop", "netpol.source.pod": "web", "source.address": "10.1.0.5",
        "netpol.destination.namespace": "shop", "netpol.destination.pod": "db", "destination.address": "10.1.0.6",
        "netpol.suppressed": 3,
    });
    assert_eq!(Value::Object(schema::attributes(&logs[0])), expected);
}

#[test]
fn failed_requests_are_retried_and_rejected_records_are_counted() {
    // These responses have the header `Retry-After: 0`.
    let retry = |status| Answer::Status(status, Some("0"), "");
    let partial = r#"{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"too old"}}"#;
    let answers = vec![
        Answer::Close,
        retry(503),
        retry(429),
        retry(502),
        Answer::Status(200, None, "{}"),
        Answer::Status(200, None, partial),
        Answer::Status(400, None, r#"{"message":"no such field"}"#),
        // In OTLP, 500 is not a status that is retried.
        Answer::Status(500, Some("0"), ""),
    ];
    let collector = Collector::start(answers);
    let (exporters, threads) = start(Target::Otlp(collector.endpoint("/v1/logs")));
    let push = |count: usize| (0..count).for_each(|_| exporters.push(&flow(FlowVerdict::Denied, 80)));
    push(2);
    let first = collector.request();
    for _ in 0..4 {
        assert_eq!(collector.request().body, first.body, "another request instead of a retry");
    }
    wait_until("the collector accepts both records after retries", || counts(&exporters) == (2, [0; 4]));
    push(3);
    wait_until("the collector rejects one of three records", || counts(&exporters) == (4, [0, 0, 1, 0]));
    push(1);
    wait_until("a record is dropped after status 400", || counts(&exporters) == (4, [0, 0, 2, 0]));
    push(1);
    wait_until("a record is dropped after status 500", || counts(&exporters) == (4, [0, 0, 3, 0]));
    // The collector closed the first connection. All further requests used one other connection.
    assert_eq!(collector.connections(), 2);
    drop(exporters);
    finish(threads);
}

#[test]
fn a_collector_that_does_not_respond_delays_nothing() {
    // The kernel accepts the connection; no process reads from it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("cannot listen");
    let port = listener.local_addr().expect("no address").port();
    let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port, path: "/v1/logs".to_owned() };
    let (exporters, threads) = start(Target::Otlp(endpoint));
    let (record, begin) = (flow(FlowVerdict::Denied, 80), Instant::now());
    (0..2 * MAX_QUEUED_RECORDS).for_each(|_| exporters.push(&record));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let (exported, [queue_full, ..]) = counts(&exporters);
    // The queue is full, and the thread has removed at most one batch (512 records) from it. All other records were
    // dropped.
    assert_eq!(exported, 0);
    assert!((MAX_QUEUED_RECORDS as u64 - 512..=MAX_QUEUED_RECORDS as u64).contains(&queue_full), "{queue_full}");
    drop(exporters);
    let begin = Instant::now();
    finish(threads);
    assert!(begin.elapsed() < FINISH_TIMEOUT * 2, "{:?}", begin.elapsed());
}

#[test]
fn a_stop_of_the_agent_ends_the_pause_before_a_retry() {
    // `Retry-After` is 60 seconds.
    let collector = Collector::start(vec![Answer::Status(503, Some("60"), "")]);
    let (exporters, threads) = start(Target::Otlp(collector.endpoint("/v1/logs")));
    exporters.push(&flow(FlowVerdict::Denied, 80));
    collector.request();
    let begin = Instant::now();
    drop(exporters);
    finish(threads);
    assert!(begin.elapsed() < FINISH_TIMEOUT, "{:?}", begin.elapsed());
}

#[test]
fn after_a_stop_of_the_agent_each_remaining_batch_is_sent_once() {
    let collector = Collector::start(vec![Answer::Status(503, Some("60"), ""); 3]);
    let (exporters, _threads) = start(Target::Otlp(collector.endpoint("/v1/logs")));
    // Three batches.
    for port in 0..1_200 {
        exporters.push(&flow(FlowVerdict::Denied, port));
    }
    collector.request();
    drop(exporters);
    collector.request();
    collector.request();
}

#[test]
fn files_have_one_record_in_each_line() {
    let folder = tempfile::tempdir().expect("no folder");
    let path = folder.path().join("flows.ndjson");
    let (exporters, threads) = start(Target::File(FileTarget { path: path.clone(), max_size: 1 << 20, files: 2 }));
    let records = [flow(FlowVerdict::Denied, 80), flow(FlowVerdict::Shadow, 443), rate_limited()];
    for record in &records {
        exporters.push(record);
    }
    drop(exporters);
    finish(threads);
    let text = std::fs::read_to_string(path).expect("no file");
    let read: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).expect("no record")).collect();
    assert_eq!(read.iter().collect::<Vec<_>>(), records.iter().map(|record| &**record).collect::<Vec<_>>());
    assert!(!text.contains('\u{202e}'), "a character that is not visible is not escaped");
}

#[test]
fn records_are_dropped_and_counted_until_the_file_can_be_written() {
    let folder = tempfile::tempdir().expect("no folder");
    let missing = folder.path().join("missing");
    let (exporters, threads) =
        start(Target::File(FileTarget { path: missing.join("flows"), max_size: 1 << 20, files: 2 }));
    exporters.push(&rate_limited());
    wait_until("the record is counted as dropped", || counts(&exporters) == (0, [0, 1, 0, 0]));
    std::fs::create_dir(&missing).expect("cannot create a folder");
    wait_until("a record is written", || {
        exporters.push(&rate_limited());
        counts(&exporters).0 > 0
    });
    drop(exporters);
    finish(threads);
    let lines = std::fs::read_to_string(missing.join("flows")).expect("no file").lines().count();
    assert!(lines > 0);
}
