//! Parses any text as manifests, and compiles the objects, as the agent does with a directory.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netpol_policy::cluster_state::Event;
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::{explain, manifest};

fuzz_target!(|text: &str| {
    let parsed = manifest::parse(text, "fuzz.yaml");
    let messages: Vec<String> = parsed.errors.iter().map(ToString::to_string).collect();
    assert!(
        messages.iter().all(|message| !message.contains(['\u{1b}', '\r', '\0'])),
        "control characters: {messages:?}"
    );
    let objects = parsed.objects.into_iter().map(|located| located.object).collect();
    let mut engine = Engine::new(NodeScope::All, FirstIds::default());
    engine.apply(Event::Reset(objects));
    let _ = explain::lint(engine.cluster_state());
});
