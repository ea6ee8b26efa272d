//! Annotations that stop enforcement. An invalid one never does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Diagnostics;
use crate::model::{
    MODE_ANNOTATION, Mode, NamespaceModes, SUSPEND_CLUSTER_ANNOTATION, SUSPENDED_REASON_ANNOTATION,
    SUSPENDED_UNTIL_ANNOTATION, Timestamp,
};

/// Maximum length of a reason, in characters.
const MAX_REASON: usize = 256;

/// Returns the mode in the annotation. With an invalid value, the policies are enforced.
pub(super) fn mode(metadata: &ObjectMeta, diagnostics: &mut Diagnostics) -> Option<Mode> {
    let value = annotation(metadata, MODE_ANNOTATION)?;
    Some(Mode::from_name(value).unwrap_or_else(|| {
        let message = format!("`{value}` is not a mode; write shadow or enforce. Until then, policies are enforced");
        diagnostics.error(field(MODE_ANNOTATION), message);
        Mode::Enforce
    }))
}

/// Returns the annotations of a namespace.
pub(super) fn modes(metadata: &ObjectMeta, diagnostics: &mut Diagnostics) -> NamespaceModes {
    let mut until = |name: &str| {
        let value = annotation(metadata, name)?;
        let time = Timestamp::parse(value);
        if time.is_none() {
            let message =
                format!("`{value}` is not an RFC 3339 time, such as 2026-01-31T18:00:00Z; nothing is suspended");
            diagnostics.error(field(name), message);
        }
        time
    };
    let (suspended_until, cluster_suspended_until) =
        (until(SUSPENDED_UNTIL_ANNOTATION), until(SUSPEND_CLUSTER_ANNOTATION));
    let is_suspended = suspended_until.is_some() || cluster_suspended_until.is_some();
    let reason = annotation(metadata, SUSPENDED_REASON_ANNOTATION).filter(|_| is_suspended);
    let reason = reason.map(|text| text.chars().take(MAX_REASON).collect::<String>().into());
    NamespaceModes { mode: mode(metadata, diagnostics), suspended_until, cluster_suspended_until, reason }
}

fn annotation<'m>(metadata: &'m ObjectMeta, name: &str) -> Option<&'m str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn field(annotation: &str) -> String {
    format!("metadata.annotations.{annotation}")
}
