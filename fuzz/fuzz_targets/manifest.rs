//! Parses the input as manifests, and compiles the objects, as the agent does with a directory. Then parses and lints
//! the input as the offline commands do, which also read workloads.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netpol_policy::cluster_state::Event;
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::lint;
use netpol_policy::manifest::{self, Parsed};
use netpol_policy::offline::OfflineCluster;

fuzz_target!(|text: &str| {
    let parsed = manifest::parse(text, "fuzz.yaml");
    assert_printable(&parsed);
    let objects = parsed.objects.into_iter().map(|located| located.object).collect();
    let mut engine = Engine::new(NodeScope::All, FirstIds::default());
    engine.apply(Event::Reset(objects));

    let parsed = manifest::parse_offline(text, "fuzz.yaml");
    assert_printable(&parsed);
    let cluster = OfflineCluster::new(&parsed, &[]);
    let _ = lint::lint(&parsed, &parsed.errors, &cluster, &lint::Selection::default());
});

fn assert_printable(parsed: &Parsed) {
    let messages = parsed.errors.iter().chain(&manifest::report(parsed)).map(ToString::to_string).collect::<Vec<_>>();
    assert!(
        messages.iter().all(|message| !message.contains(['\u{1b}', '\r', '\0'])),
        "control characters: {messages:?}"
    );
}
