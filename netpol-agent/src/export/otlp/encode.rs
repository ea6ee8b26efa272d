//! Encodes records of flows as an `ExportLogsServiceRequest` of OpenTelemetry in JSON. Each record becomes one
//! `LogRecord`. The fields have the names from the messages in
//! <https://github.com/open-telemetry/opentelemetry-proto> (`collector/logs/v1`, `logs/v1`, `common/v1`), in lower
//! camel case. 64-bit integers are strings, and enums are numbers.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use netpol_api::Record;
use serde::Serialize;
use serde_json::Value;

use super::super::json;

/// Maximum size of a request in bytes, except for a single record that is larger. Collectors accept 20 MiB.
const MAX_BODY: usize = 4 << 20;
/// The number and the text of a severity: `SEVERITY_NUMBER_INFO` of `SeverityNumber`.
const INFO: (u32, &str) = (9, "INFO");
/// `SEVERITY_NUMBER_WARN`, for denied packets.
const WARN: (u32, &str) = (13, "WARN");

/// Attributes of a `LogRecord`, and JSON pointers to their values in the record of the flow. Attributes without a value
/// are omitted.
const ATTRIBUTES: [(&str, &str); 18] = [
    ("netpol.verdict", "/verdict"),
    ("netpol.direction", "/direction"),
    ("netpol.reason", "/reason"),
    ("netpol.source.namespace", "/from/namespace"),
    ("netpol.source.pod", "/from/pod"),
    ("netpol.destination.namespace", "/to/namespace"),
    ("netpol.destination.pod", "/to/pod"),
    ("source.address", "/from/address"),
    ("source.port", "/from/port"),
    ("destination.address", "/to/address"),
    ("destination.port", "/to/port"),
    ("netpol.protocol", "/protocol"),
    ("netpol.suppressed", "/suppressed"),
    ("netpol.packets", "/packets"),
    ("netpol.bytes", "/bytes"),
    ("netpol.reply_packets", "/replyPackets"),
    ("netpol.reply_bytes", "/replyBytes"),
    ("netpol.ended", "/ended"),
];

/// `LogRecord`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LogRecord {
    time_unix_nano: String,
    observed_time_unix_nano: String,
    severity_number: u32,
    severity_text: &'static str,
    body: AnyValue,
    attributes: Vec<KeyValue>,
    event_name: String,
}

/// `KeyValue`.
#[derive(Debug, Serialize)]
struct KeyValue {
    key: String,
    value: AnyValue,
}

/// `AnyValue`.
#[derive(Debug, Serialize)]
enum AnyValue {
    #[serde(rename = "stringValue")]
    String(String),
    #[serde(rename = "boolValue")]
    Bool(bool),
    #[serde(rename = "intValue")]
    Int(String),
    #[serde(rename = "doubleValue")]
    Double(f64),
    #[serde(rename = "arrayValue")]
    Array { values: Vec<AnyValue> },
    #[serde(rename = "kvlistValue")]
    KeyValueList { values: Vec<KeyValue> },
}

/// Encodes requests of one agent.
#[derive(Debug)]
pub(super) struct Encoder {
    /// The request up to its first `LogRecord`.
    start: String,
}

/// The request after its last `LogRecord`.
const END: &str = "]}]}]}";

impl Encoder {
    /// Creates an encoder for the agent on a node.
    pub(super) fn new(node: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let attributes: Vec<_> =
            [("service.name", "netpol-agent"), ("service.version", version), ("k8s.node.name", node)]
                .map(|(key, value)| KeyValue { key: key.to_owned(), value: AnyValue::String(value.to_owned()) })
                .into();
        // The values are strings, which are always valid in JSON.
        let attributes = json(&attributes).unwrap_or_else(|_| "[]".to_owned());
        let scope = format!(r#"{{"name":"netpol","version":"{version}"}}"#);
        let start = format!(
            r#"{{"resourceLogs":[{{"resource":{{"attributes":{attributes}}},"scopeLogs":[{{"scope":{scope},"logRecords":["#
        );
        Self { start }
    }

    /// Returns a request with as many records as fit, but at least the first record. Also returns the number of records
    /// in this request. `observed`: the time of the export.
    pub(super) fn request(&self, records: &[Arc<Record>], observed: SystemTime) -> (String, usize) {
        let mut body = self.start.clone();
        let mut count = 0;
        for record in records {
            let encoded = serde_json::to_value(record).and_then(|record| json(&log_record(record, observed)));
            // All maps in records have strings as keys, as JSON requires. So records can always be encoded.
            let encoded = encoded.unwrap_or_else(|_| "{}".to_owned());
            if count > 0 && body.len() + encoded.len() > MAX_BODY {
                break;
            }
            if count > 0 {
                body.push(',');
            }
            body.push_str(&encoded);
            count += 1;
        }
        body.push_str(END);
        (body, count)
    }
}

fn log_record(record: Value, observed: SystemTime) -> LogRecord {
    let text = |field: &str| record.get(field).and_then(Value::as_str).unwrap_or_default();
    let observed = observed.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let time = text("time").parse::<jiff::Timestamp>().map_or(observed, |time| time.as_nanosecond().unsigned_abs());
    let is_denied = text("verdict") == "denied";
    let (severity_number, severity_text) = if is_denied { WARN } else { INFO };
    let attribute = |(key, pointer): &(&str, &str)| {
        let value = any_value(record.pointer(pointer)?.clone())?;
        Some(KeyValue { key: (*key).to_owned(), value })
    };
    LogRecord {
        time_unix_nano: time.to_string(),
        observed_time_unix_nano: observed.to_string(),
        severity_number,
        severity_text,
        attributes: ATTRIBUTES.iter().filter_map(attribute).collect(),
        event_name: format!("netpol.{}", text("type")),
        body: any_value(record).unwrap_or_else(|| AnyValue::String(String::new())),
    }
}

/// Converts a value. Returns `None` for `null`, which has no equivalent.
fn any_value(value: Value) -> Option<AnyValue> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => AnyValue::Bool(value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => AnyValue::Int(integer.to_string()),
            (None, Some(float)) => AnyValue::Double(float),
            (None, None) => return None,
        },
        Value::String(text) => AnyValue::String(text),
        Value::Array(values) => AnyValue::Array { values: values.into_iter().filter_map(any_value).collect() },
        Value::Object(fields) => {
            let fields = fields.into_iter().filter_map(|(key, value)| Some(KeyValue { key, value: any_value(value)? }));
            AnyValue::KeyValueList { values: fields.collect() }
        }
    })
}
