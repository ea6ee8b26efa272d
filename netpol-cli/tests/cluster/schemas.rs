//! Tests the JSON schemas in docs/schemas, which describe the output of commands with `-o json`. Whenever a test runs
//! such a command, [`schema::check_output`] also checks the output by the command's schema.
//!
//! `UPDATE_EXPECT=1 cargo test -p netpol-cli --test cluster schemas` copies the definitions of the agent's API from
//! docs/api/openapi.json into the schemas.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use netpol_api::FlowVerdict;
use serde_json::{Map, Value, json};

use crate::agents::{Agent, Behavior, Cluster};
use crate::common::schema::{self, Schema};
use crate::common::{Manifests, RunOutput};
use crate::fixtures::{allowed, denied, list, policies, record, shadow, status, waited};
use crate::objects::shop;

/// Keywords of JSON Schema that have a map from names to schemas as their value.
const MAPS_OF_SCHEMAS: [&str; 2] = ["properties", "$defs"];

/// Returns the names of the files in docs/schemas, without `.json`.
fn schema_names() -> BTreeSet<String> {
    let entries = fs::read_dir(schema::directory()).expect("docs/schemas");
    let name = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
    entries.map(|entry| name(&entry.expect("an entry").path())).collect()
}

/// Runs a command with `-o json`. [`Cluster::netpol`] checks the output with the command's schema.
fn run_with_json(cluster: &Cluster, arguments: &[&str]) -> RunOutput {
    let run = cluster.netpol(&[arguments, &["-o", "json"]].concat());
    assert!(!run.out.is_empty(), "{arguments:?}: {}", run.err);
    run
}

#[test]
fn the_output_of_each_command_has_a_schema() {
    let agent = Agent::default()
        .responds("/v1/status", &status("n1"))
        .responds("/v1/endpoints", &list("n1", &[crate::fixtures::endpoint("shop/web-0", "veth1", "10.0.0.1")]))
        .responds("/v1/policies", &policies("n1", &["shop/db-0"], 3))
        .responds("/v1/shadow", &shadow("n1", 2))
        .responds("/v1/wait", &waited("n1", netpol_api::WaitOutcome::Met))
        .flows([record(denied("12:00:00", "n1")), record(allowed("12:00:01", "n1"))]);
    // The second agent does not respond, so the output also has a node with an error.
    let cluster = shop(&[("n1", Behavior::Responds, agent), ("n2", Behavior::Silent, Agent::default())]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "web-0", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "x"}]}, "status": {"podIP": "10.0.0.7"}});
    cluster.server.apply(pod).expect("a pod");
    let manifests = Manifests::of(&[
        (
            "e.yaml",
            "namespace: shop\nexpectations:\n- {deny: deploy/web, to: pod/db-0}\n- {allow: deploy/web, to: pod/db-0}\n",
        ),
        ("new.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: new}}"),
    ]);
    let path = |name: &str| manifests.path().join(name).to_str().expect("text").to_owned();
    let (expectations, new) = (path("e.yaml"), path("new.yaml"));
    // The name of the schema, and the arguments.
    let commands: &[(&str, &[&str])] = &[
        ("explain", &["explain", "-n", "shop", "--from", "deploy/web", "--to", "pod/db-0", "--port", "80"]),
        ("explain", &["explain", "-n", "shop", "--from", "pod/db-0", "--to", "192.0.2.1", "--port", "80/UDP"]),
        ("matrix", &["matrix", "-A"]),
        ("matrix", &["matrix", "-n", "shop", "-p", "5432", "-a", "192.0.2.1"]),
        ("diff", &["diff", "--cluster", &new]),
        ("assert", &["assert", "-a", &expectations]),
        ("lint", &["lint", "-A"]),
        ("status", &["status"]),
        ("endpoints", &["endpoints", "-A"]),
        ("policies", &["policies", "-A"]),
        ("shadow-report", &["shadow", "report", "-A"]),
        ("top", &["top", "-A", "--since", "1h"]),
        ("flow-record", &["flows", "-A"]),
        ("record", &["record", "-n", "shop", "--include-denied"]),
        ("why", &["why", "pod/db-0", "-n", "shop"]),
        ("wait", &["wait", "--for", "policy/shop/db", "--timeout", "1s"]),
        ("suspend", &["suspend", "-n", "shop", "--for", "30m", "--reason", "incident"]),
        ("suspend", &["resume", "-n", "shop"]),
    ];
    for (_, arguments) in commands {
        run_with_json(&cluster, arguments);
    }
    let used: BTreeSet<String> = commands.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(used, schema_names());
    let page = fs::read_to_string(schema::directory().join("../cli.md")).expect("docs/cli.md");
    assert!(page.contains("(schemas)"), "docs/cli.md links the schemas");
}

/// Calls `check` for `schema` and for each schema inside it. `check` receives the keywords and the path of the schema.
fn visit(schema: &Value, at: &str, check: &mut impl FnMut(&Map<String, Value>, &str)) {
    match schema {
        Value::Object(keywords) => {
            check(keywords, at);
            for (keyword, value) in keywords {
                if MAPS_OF_SCHEMAS.contains(&keyword.as_str()) {
                    let named = value.as_object().into_iter().flatten();
                    named.for_each(|(name, schema)| visit(schema, &format!("{at}.{name}"), check));
                } else {
                    visit(value, at, check);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| visit(value, at, check)),
        _ => {}
    }
}

#[test]
fn schemas_allow_no_other_fields_and_describe_each_field() {
    let api = api();
    for name in schema_names() {
        let Schema { root, .. } = Schema::read(&name);
        assert_eq!(root["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
        assert!(root["title"].is_string() && root["description"].is_string(), "{name}");
        visit(&root, &name, &mut |keywords, at| {
            if keywords.get("properties").is_some() {
                assert_eq!(keywords.get("additionalProperties"), Some(&json!(false)), "{at}");
            }
            // Definitions of the agent's API need no description here: docs/flows.md and docs/agent.md describe them.
            let is_of_api = at.split('.').nth(1).is_some_and(|definition| api.contains_key(definition));
            let properties = keywords.get("properties").and_then(Value::as_object).filter(|_| !is_of_api);
            for (property, schema) in properties.into_iter().flatten() {
                assert!(schema["description"].as_str().is_some_and(|text| !text.is_empty()), "{at}.{property}");
            }
        });
    }
}

#[test]
fn schemas_reject_what_they_do_not_describe() {
    // A schema with most of the keywords that `Schema::check` supports.
    let schema = Schema::of(json!({
        "type": "object", "required": ["n"], "additionalProperties": false,
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 9}, "kind": {"enum": ["x"]}, "one": {"const": 1},
            "list": {"type": "array", "items": {"$ref": "#/$defs/Text"}, "maxItems": 2}, "either": {"oneOf": [{"const": 1}, {"type": "null"}]},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "$defs": {"Text": {"type": ["string", "null"]}},
    }));
    let valid = json!({"n": 9, "kind": "x", "one": 1, "list": ["a", null], "either": null, "map": {"a": "b"}});
    assert_eq!(schema.check(&valid), Ok(()));
    for (field, value) in [
        ("n", json!(10)),
        ("n", json!(-1)),
        ("n", json!("9")),
        ("kind", json!("y")),
        ("one", json!(2)),
        ("list", json!([1])),
        ("list", json!(["a", "b", "c"])),
        ("either", json!(2)),
        ("map", json!({"a": 1})),
        ("more", json!(1)),
    ] {
        let mut invalid = valid.clone();
        invalid[field] = value;
        assert!(schema.check(&invalid).is_err_and(|error| error.contains(field)), "{invalid}");
    }
    assert!(schema.check(&json!({})).is_err() && schema.check(&json!([])).is_err());
    // `pattern` is a keyword that `Schema::check` does not support.
    assert!(Schema::of(json!({"pattern": "^a"})).check(&json!("a")).is_err());
    // The schema of flow records accepts denied and allowed flows. It rejects the field `bytes`, which flow records do
    // not have.
    let schema = Schema::read("flow-record");
    let mut flow = serde_json::to_value(record(denied("12:00:00", "n1"))).expect("JSON");
    assert_eq!(schema.check(&flow), Ok(()));
    flow["verdict"] = json!(FlowVerdict::Allowed);
    assert_eq!(schema.check(&flow), Ok(()));
    flow["bytes"] = json!(1);
    assert!(schema.check(&flow).is_err());
}

/// Returns the schemas of the agent's API by name, as definitions for the schemas in docs/schemas.
fn api() -> Map<String, Value> {
    let text = fs::read_to_string(schema::directory().join("../api/openapi.json")).expect("docs/api/openapi.json");
    let text = text.replace("#/components/schemas/", "#/$defs/");
    let description: Value = serde_json::from_str(&text).expect("JSON");
    let mut schemas = description["components"]["schemas"].as_object().expect("schemas").clone();
    for schema in schemas.values_mut().filter_map(Value::as_object_mut) {
        // OpenAPI has this keyword, but JSON Schema does not.
        schema.remove("discriminator");
    }
    schemas
}

/// Returns the definitions (`$defs`) that a schema should have: only those that it uses. A definition of the agent's
/// API is copied from `api`, any other from the schema.
fn definitions(root: &Value, api: &Map<String, Value>) -> Map<String, Value> {
    let mut found = Map::new();
    let mut without_definitions = root.clone();
    without_definitions.as_object_mut().expect("an object").remove("$defs");
    let mut to_visit = vec![without_definitions];
    while let Some(schema) = to_visit.pop() {
        visit(&schema, "", &mut |keywords, _| {
            let reference = keywords.get("$ref").and_then(Value::as_str);
            let Some(name) = reference.and_then(|text| text.strip_prefix("#/$defs/")) else { return };
            if !found.contains_key(name) {
                let definition = api.get(name).unwrap_or(&root["$defs"][name]).clone();
                to_visit.push(definition.clone());
                found.insert(name.to_owned(), definition);
            }
        });
    }
    found
}

#[test]
fn schemas_have_the_same_definitions_as_the_api() {
    let api = api();
    for name in schema_names() {
        let Schema { mut root, .. } = Schema::read(&name);
        let expected = Value::Object(definitions(&root, &api));
        if root["$defs"] == expected || root.get("$defs").is_none() && expected == json!({}) {
            continue;
        }
        assert!(
            std::env::var_os("UPDATE_EXPECT").is_some(),
            "docs/schemas/{name}.json differs from docs/api/openapi.json, or has unused definitions; set UPDATE_EXPECT=1"
        );
        root["$defs"] = expected;
        let text = serde_json::to_string_pretty(&root).expect("JSON") + "\n";
        fs::write(schema::directory().join(format!("{name}.json")), text).expect("the schema is written");
    }
}
