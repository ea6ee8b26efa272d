//! Builds Kubernetes Event objects. The API server validates them with `ValidateEventCreate` and `ValidateEventUpdate`
//! in kubernetes/pkg/apis/core/validation/events.go: only the series of an existing Event may change.

use std::time::SystemTime;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde_json::{Value, json};

use super::aggregate::{MAX_TOPICS, Series};
use super::notice::{Notice, NoticeObject};
use super::topic;

/// The component that writes the Events; `kubectl describe` shows it under From.
pub(super) const CONTROLLER: &str = "netpol-agent";
/// Maximum length of an object's name.
const MAX_NAME_LENGTH: usize = 253;

/// Returns the name of a pod's Event.
pub(super) fn name_of_series(series: &Series) -> String {
    event_name(&series.pod.name, series.id)
}

/// Returns an Event about packets of a pod that were denied, or that policies in shadow mode would deny. `uid`: the UID
/// of the pod.
pub(super) fn of_series(series: &Series, uid: Option<String>, node: &str) -> Event {
    let topic = &series.topic;
    // A merged Event counts the packets of many peers, so it names none of these peers.
    let note = if series.merged { topic::merged_note(topic, MAX_TOPICS) } else { topic::note(topic) };
    let related = topic.peer.namespace.as_deref().zip(topic.peer.pod.as_deref()).filter(|_| !series.merged);
    let reference = |namespace: &str, name: &str, uid| reference("v1", "Pod", namespace, name, uid);
    Event {
        action: Some(if topic.shadow { "Observe" } else { "Deny" }.to_owned()),
        event_time: Some(time(series.first)),
        note: Some(note),
        reason: topic::event_reason(topic).map(str::to_owned),
        regarding: Some(reference(&series.pod.namespace, &series.pod.name, uid)),
        related: related.map(|(namespace, name)| reference(namespace, name, None)),
        series: (series.count > 1).then(|| event_series(series)),
        type_: Some(if topic.shadow { "Normal" } else { "Warning" }.to_owned()),
        ..event_base(&series.pod.namespace, name_of_series(series), node)
    }
}

/// Returns the patch that updates the series of an existing Event.
pub(super) fn series_patch(series: &Series) -> Value {
    json!({"series": event_series(series)})
}

/// Returns an Event about a policy or a namespace. Every agent gives the Event the same name, so that the API server
/// stores it once. `uid`: the UID of the policy or namespace.
pub(super) fn of_notice(notice: &Notice, uid: Option<String>, node: &str, now: SystemTime) -> Event {
    let (namespace, name, regarding) = match &notice.object {
        NoticeObject::Policy(key) => (
            &key.namespace,
            &key.name,
            reference("networking.k8s.io/v1", "NetworkPolicy", &key.namespace, &key.name, uid),
        ),
        // The field `namespace` of this reference is set, although a Namespace is in no namespace. So the Event can be
        // in the namespace that it is about, and `kubectl events -n NAMESPACE` shows the Event.
        NoticeObject::Namespace(name) => (name, name, reference("v1", "Namespace", name, name, uid)),
    };
    let object_id = regarding.uid.clone().unwrap_or_else(|| format!("{namespace}/{name}"));
    let event = event_name(name, fnv(&[&object_id, &notice.message]));
    Event {
        action: Some("Enforce".to_owned()),
        event_time: Some(time(now)),
        note: Some(topic::escape_and_shorten(notice.message.clone())),
        reason: Some(notice.reason.name().to_owned()),
        regarding: Some(regarding),
        type_: Some(notice.reason.event_type().to_owned()),
        ..event_base(namespace, event, node)
    }
}

/// Returns the fields that all Events have in common.
fn event_base(namespace: &str, name: String, node: &str) -> Event {
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() },
        reporting_controller: Some(CONTROLLER.to_owned()),
        // The API server allows at most 128 bytes.
        reporting_instance: Some(node.chars().take(128).collect()),
        ..Event::default()
    }
}

fn reference(version: &str, kind: &str, namespace: &str, name: &str, uid: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid,
        ..ObjectReference::default()
    }
}

/// Returns the series of an Event. The API server requires a count of at least 2.
fn event_series(series: &Series) -> EventSeries {
    let count = i32::try_from(series.count).unwrap_or(i32::MAX).max(2);
    EventSeries { count, last_observed_time: time(series.last) }
}

fn time(time: SystemTime) -> MicroTime {
    MicroTime(Timestamp::try_from(time).unwrap_or_default())
}

/// Returns `OBJECT.HASH`, with OBJECT shortened if the name would be too long.
fn event_name(object: &str, hash: u64) -> String {
    let suffix = format!(".{hash:016x}");
    let cut: String = object.chars().take(MAX_NAME_LENGTH - suffix.len()).collect();
    cut.trim_end_matches(['.', '-']).to_owned() + &suffix
}

/// Hashes with FNV-1a, which is the same in every agent and every version. Source: RFC 9923.
fn fnv(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::PolicyKey;

    use super::*;

    #[test]
    fn event_names_are_valid_for_all_object_names() {
        assert_eq!(event_name("web-0", 0xabc), "web-0.0000000000000abc");
        for length in 200..=253 {
            for end in ["a", "-", "."] {
                // For some lengths, the name is cut directly after `end`.
                let object = format!("{}{end}{}", "a".repeat(length - 1), "b".repeat(253 - length));
                let name = event_name(&object, 1);
                assert!(name.len() <= MAX_NAME_LENGTH && !name.contains("-.") && !name.contains(".."), "{name}");
            }
        }
    }

    #[test]
    fn all_agents_use_one_event_name_until_the_policy_is_recreated() {
        let notice = Notice::about_policy(&PolicyKey::new("shop", "bad"), "spec.ingress: no");
        let name = |uid: &str, node: &str, seconds| {
            let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            of_notice(&notice, Some(uid.into()), node, now).metadata.name
        };
        assert_eq!(name("uid-1", "a", 1), name("uid-1", "b", 2));
        assert_ne!(name("uid-1", "a", 1), name("uid-2", "a", 1));
        assert_eq!(fnv(&["a"]), fnv(&["a"]));
        assert_ne!(fnv(&["ab", "c"]), fnv(&["a", "bc"]));
    }
}
