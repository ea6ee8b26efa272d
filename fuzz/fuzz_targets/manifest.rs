//! Parses any text as manifests, and compiles the objects, as the agent does with a directory. Then does what the offline
//! commands do, which also read workloads.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netpol_policy::cluster_state::Event;
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::explain;
use netpol_policy::manifest::{self, Parsed};
use netpol_policy::offline::OfflineCluster;

fuzz_target!(|text: &str| {
    let parsed = manifest::parse(text, "fuzz.yaml");
    assert_printable(&parsed);
    let objects = parsed.objects.into_iter().map(|located| located.object).collect();
    let mut engine = Engine::new(NodeScope::All, FirstIds::default());
    engine.apply(Event::Reset(objects));
    let _ = explain::lint(engine.cluster_state());

    let parsed = manifest::parse_offline(text, "fuzz.yaml");
    assert_printable(&parsed);
    let cluster = OfflineCluster::new(&parsed, &[]);
    let _ = explain::lint(cluster.state());
});

fn assert_printable(parsed: &Parsed) {
    let messages = parsed.errors.iter().chain(&manifest::report(parsed)).map(ToString::to_string).collect::<Vec<_>>();
    assert!(
        messages.iter().all(|message| !message.contains(['\u{1b}', '\r', '\0'])),
        "control characters: {messages:?}"
    );
}
