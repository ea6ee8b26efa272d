//! Tests [`Gatherer`], which combines the events of all watches into bundles (batches of changes).

use netpol_policy::model::{Namespace, Node};

use super::*;

const NODES: Resource = Resource::Nodes;
const NAMESPACES: Resource = Resource::Namespaces;

/// A gatherer of nodes and namespaces, and the current time of the test.
struct Case {
    gatherer: Gatherer,
    now: Instant,
}

fn node(name: &str, version: u64) -> ReceivedObject {
    let object = Object::Node(Node { name: name.into(), addresses: Vec::new() });
    ReceivedObject { key: object.key(), version, object: Some(object), diagnostics: Vec::new() }
}

fn namespace(name: &str, version: u64) -> ReceivedObject {
    let object = Object::Namespace(Namespace {
        name: name.into(),
        labels: netpol_policy::model::Labels::new(),
        modes: netpol_policy::model::NamespaceModes::default(),
    });
    ReceivedObject { key: object.key(), version, object: Some(object), diagnostics: Vec::new() }
}

impl Case {
    fn new() -> Self {
        Self { gatherer: Gatherer::new(&[NODES, NAMESPACES]), now: Instant::now() }
    }

    /// Returns a case in which both resources are listed (node `a` and namespace `x`), and the first bundle was sent.
    fn listed() -> Self {
        let mut case = Self::new();
        case.list(NODES, vec![node("a", 1)]);
        case.list(NAMESPACES, vec![namespace("x", 2)]);
        assert_eq!(case.due(), ["=2"]);
        case
    }

    fn process(&mut self, resource: Resource, event: WatchEvent) {
        self.gatherer.process(resource, event, self.now);
    }

    /// Processes a complete list of a resource.
    fn list(&mut self, resource: Resource, all: Vec<ReceivedObject>) {
        self.process(resource, WatchEvent::Began);
        let version = all.iter().map(|item| item.version).max().unwrap_or(1);
        for item in all {
            self.process(resource, WatchEvent::Item(item, self.now));
        }
        self.process(resource, WatchEvent::Listed(version));
    }

    /// Returns the bundles that are due, one text for each: `+` stands for an applied object, `-` for a deleted object,
    /// and `=2` for a reset with two objects. `!` marks a bundle with the differences after an outage.
    fn due(&mut self) -> Vec<String> {
        let text = |bundle: Bundle| {
            let events = bundle.events.iter().map(|event| match event {
                Event::Apply(object) => format!("+{}", object.key()),
                Event::Delete(key) => format!("-{key}"),
                Event::Reset(objects) => format!("={}", objects.len()),
                Event::LocalAddresses(_) | Event::Clock(_) => "?".to_owned(),
            });
            let mark = if bundle.after_resync { "!" } else { "" };
            mark.to_owned() + &events.collect::<Vec<_>>().join(" ")
        };
        self.gatherer.due(self.now).into_iter().map(text).collect()
    }
}

#[test]
fn the_first_bundle_waits_for_all_resources_and_includes_later_changes() {
    let mut case = Case::new();
    case.list(NODES, vec![node("a", 1), node("b", 2)]);
    case.process(NODES, WatchEvent::Deleted(node("a", 3), case.now));
    case.process(NODES, WatchEvent::Changed(node("c", 4), case.now));
    assert_eq!(case.due(), [""; 0]);
    case.list(NAMESPACES, Vec::new());
    assert_eq!(case.due(), ["=2"]);
}

#[test]
fn changes_while_in_sync_are_sent_immediately() {
    let mut case = Case::listed();
    case.process(NODES, WatchEvent::Changed(node("b", 3), case.now));
    case.process(NODES, WatchEvent::Deleted(node("a", 4), case.now));
    assert_eq!(case.due(), ["+Node b -Node a"]);
    assert_eq!((case.due(), case.gatherer.resync_at()), (Vec::new(), None));
}

#[test]
fn the_differences_after_an_outage_are_one_bundle() {
    let mut case = Case::listed();
    case.process(NODES, WatchEvent::Lost);
    case.process(NAMESPACES, WatchEvent::Lost);
    case.list(NODES, vec![node("b", 3)]);
    assert_eq!(case.due(), [""; 0], "namespaces are still out of sync");
    case.process(NODES, WatchEvent::Changed(node("c", 4), case.now));
    case.now += MAX_DELAY / 2;
    assert_eq!(case.due(), [""; 0]);
    case.list(NAMESPACES, vec![namespace("y", 5)]);
    assert_eq!(case.due(), ["!-Namespace x +Namespace y -Node a +Node b +Node c"]);
    case.process(NODES, WatchEvent::Changed(node("d", 6), case.now));
    assert_eq!(case.due(), ["+Node d"], "in sync again");
}

#[test]
fn a_lost_resource_delays_the_others_only_for_a_limited_time() {
    let mut case = Case::listed();
    case.process(NODES, WatchEvent::Lost);
    case.process(NAMESPACES, WatchEvent::Lost);
    case.list(NODES, Vec::new());
    case.now += MAX_DELAY.saturating_sub(Duration::from_millis(1));
    assert_eq!(case.due(), [""; 0]);
    case.now += Duration::from_millis(1);
    assert_eq!(case.due(), ["!-Node a"]);
    case.process(NODES, WatchEvent::Changed(node("b", 7), case.now));
    assert_eq!(case.due(), ["+Node b"]);
    case.list(NAMESPACES, Vec::new());
    assert_eq!(case.due(), ["!-Namespace x"]);
}

#[test]
fn a_skipped_resource_delays_the_others_again_only_after_it_has_recovered() {
    let mut case = Case::listed();
    case.process(NODES, WatchEvent::Lost);
    case.process(NAMESPACES, WatchEvent::Lost);
    case.list(NODES, Vec::new());
    case.now += MAX_DELAY;
    // The nodes have waited long enough, so the namespaces are skipped.
    assert_eq!(case.due(), ["!-Node a"]);
    case.process(NODES, WatchEvent::Lost);
    case.process(NAMESPACES, WatchEvent::Lost);
    case.list(NODES, vec![node("b", 7)]);
    assert_eq!(case.due(), ["!+Node b"], "nodes must not wait for namespaces");

    case.list(NAMESPACES, Vec::new());
    assert_eq!(case.due(), ["!-Namespace x"]);
    case.process(NODES, WatchEvent::Lost);
    case.process(NAMESPACES, WatchEvent::Lost);
    case.list(NODES, Vec::new());
    assert_eq!(case.due(), [""; 0], "namespaces have recovered, so nodes wait for them again");
}

#[test]
fn a_watch_that_resumes_after_it_was_lost_sends_the_missed_changes_as_one_bundle() {
    let mut case = Case::listed();
    case.process(NODES, WatchEvent::Lost);
    case.process(NODES, WatchEvent::Resumed);
    case.process(NODES, WatchEvent::Changed(node("b", 3), case.now));
    case.process(NODES, WatchEvent::Deleted(node("b", 4), case.now));
    assert_eq!(case.due(), [""; 0]);
    case.now += CATCH_UP;
    assert_eq!(case.due(), ["!-Node b"], "only the final state is sent");
}

#[test]
fn an_incomplete_list_deletes_nothing() {
    let mut case = Case::listed();
    case.process(NODES, WatchEvent::Began);
    case.process(NODES, WatchEvent::Lost);
    case.now += MAX_DELAY * 2;
    assert_eq!(case.due(), [""; 0]);
    case.list(NODES, vec![node("a", 9)]);
    assert_eq!(case.due(), [""; 0], "nothing differs");
}

#[test]
fn a_query_about_an_object_has_a_result_only_after_its_version_was_sent() {
    let mut case = Case::listed();
    let key = ObjectKey::Node("a".into());
    // `version`: the version of the node at the API server; `None` if the API server has no such node.
    let exists = |case: &Case, version| case.gatherer.exists_if_sent(NODES, &key, version);
    assert_eq!(exists(&case, Some(1)), Some(true));
    assert_eq!(exists(&case, Some(5)), None, "version 5 was not received yet");
    assert_eq!(exists(&case, None), None, "the deletion was not received yet");
    case.process(NODES, WatchEvent::Position(6));
    assert_eq!(exists(&case, Some(5)), Some(true), "all changes up to version 6 were received");
    case.process(NODES, WatchEvent::Deleted(node("a", 7), case.now));
    assert_eq!(exists(&case, None), None, "the deletion was not sent yet");
    case.due();
    assert_eq!((exists(&case, None), exists(&case, Some(7))), (Some(false), Some(false)));
}

#[test]
fn a_recovered_resource_waits_for_a_failed_watch_that_may_have_missed_changes() {
    let mut case = Case::listed();
    case.process(NODES, WatchEvent::Broken);
    case.process(NAMESPACES, WatchEvent::Lost);
    case.list(NAMESPACES, vec![namespace("y", 3)]);
    assert_eq!(case.due(), [""; 0], "the failed watch of nodes may have missed changes, too");
    case.process(NODES, WatchEvent::Lost);
    case.list(NODES, vec![node("b", 3)]);
    assert_eq!(case.due(), ["!-Namespace x +Namespace y -Node a +Node b"]);

    // A failed watch (`Broken`) that resumes before it counts as `Lost` has missed nothing. So its further events are
    // ordinary changes, not differences after an outage.
    case.process(NODES, WatchEvent::Broken);
    case.process(NODES, WatchEvent::Resumed);
    case.process(NODES, WatchEvent::Changed(node("c", 5), case.now));
    assert_eq!(case.due(), ["+Node c"]);
}
