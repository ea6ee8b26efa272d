//! Checks JSON against the message types of OTLP, the OpenTelemetry protocol. The table of message types is a copy from
//! the `.proto` files of <https://github.com/open-telemetry/opentelemetry-proto> (1.9). A field that the message type
//! does not have is an error: a real collector ignores such a field, so the field's content would be lost.

use serde_json::{Map, Number, Value};

/// Message types with their fields. A field is its name in JSON, and its type. `*` means repeated.
const MESSAGES: [(&str, &[(&str, &str)]); 10] = [
    ("ExportLogsServiceRequest", &[("resourceLogs", "*ResourceLogs")]),
    ("ResourceLogs", &[("resource", "Resource"), ("scopeLogs", "*ScopeLogs"), ("schemaUrl", "string")]),
    ("Resource", &[("attributes", "*KeyValue"), ("droppedAttributesCount", "uint32")]),
    ("ScopeLogs", &[("scope", "InstrumentationScope"), ("logRecords", "*LogRecord"), ("schemaUrl", "string")]),
    (
        "InstrumentationScope",
        &[("name", "string"), ("version", "string"), ("attributes", "*KeyValue"), ("droppedAttributesCount", "uint32")],
    ),
    (
        "LogRecord",
        &[
            ("timeUnixNano", "fixed64"),
            ("observedTimeUnixNano", "fixed64"),
            ("severityNumber", "uint32"),
            ("severityText", "string"),
            ("body", "AnyValue"),
            ("attributes", "*KeyValue"),
            ("droppedAttributesCount", "uint32"),
            ("flags", "uint32"),
            ("traceId", "string"),
            ("spanId", "string"),
            ("eventName", "string"),
        ],
    ),
    ("KeyValue", &[("key", "string"), ("value", "AnyValue")]),
    // A `oneof`: exactly one field.
    (
        "AnyValue",
        &[
            ("stringValue", "string"),
            ("boolValue", "bool"),
            ("intValue", "int64"),
            ("doubleValue", "double"),
            ("arrayValue", "ArrayValue"),
            ("kvlistValue", "KeyValueList"),
        ],
    ),
    ("ArrayValue", &[("values", "*AnyValue")]),
    ("KeyValueList", &[("values", "*KeyValue")]),
];

/// Panics if the value does not have this type: a scalar type, or a message type.
pub(super) fn check(type_name: &str, value: &Value) {
    let is_valid = match type_name {
        "string" => value.is_string(),
        "bool" => value.is_boolean(),
        "double" => value.is_f64(),
        "uint32" => value.as_u64().is_some_and(|number| u32::try_from(number).is_ok()),
        // ProtoJSON writes 64-bit integers as strings.
        "int64" => value.as_str().is_some_and(|text| text.parse::<i64>().is_ok()),
        "fixed64" => value.as_str().is_some_and(|text| text.parse::<u64>().is_ok()),
        message => return check_message(message, value),
    };
    assert!(is_valid, "{value} does not have the type {type_name}");
}

fn check_message(message: &str, value: &Value) {
    let (_, fields) = MESSAGES.iter().find(|(name, _)| *name == message).expect(message);
    let object = value.as_object().unwrap_or_else(|| panic!("{value} does not have the type {message}"));
    assert!(message != "AnyValue" || object.len() == 1, "AnyValue has {} fields: {value}", object.len());
    for (name, value) in object {
        let field = fields.iter().find(|(field_name, _)| field_name == name);
        let (_, type_name) = field.unwrap_or_else(|| panic!("{message} has no field {name}"));
        match type_name.strip_prefix('*') {
            Some(element_type) => {
                let list = value.as_array().unwrap_or_else(|| panic!("{message}.{name} is not a list: {value}"));
                for element in list {
                    check(element_type, element);
                }
            }
            None => check(type_name, value),
        }
    }
}

/// Converts an `AnyValue` to the value that it encodes.
pub(super) fn value(any: &Value) -> Value {
    let (kind, value) = any.as_object().and_then(|object| object.iter().next()).expect("an AnyValue has one field");
    let values = || value["values"].as_array().expect("no values").iter();
    match &**kind {
        "intValue" => {
            let number: i64 = value.as_str().and_then(|text| text.parse().ok()).expect("no integer");
            Value::Number(Number::from(number))
        }
        "arrayValue" => values().map(self::value).collect(),
        "kvlistValue" => values().map(key_value).collect(),
        _ => value.clone(),
    }
}

/// Returns the attributes of a message as a map.
pub(super) fn attributes(message: &Value) -> Map<String, Value> {
    message["attributes"].as_array().expect("no attributes").iter().map(key_value).collect()
}

fn key_value(pair: &Value) -> (String, Value) {
    (pair["key"].as_str().expect("no key").to_owned(), value(&pair["value"]))
}
