//! Parses policies, and keeps the valid parts of invalid ones.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

use super::{DUPLICATE_KEY, FieldError, FieldPath, ObjectLocation, ObjectReader, Step, UNKNOWN_FIELD, deserialize};
use crate::manifest::{salvage, size};
use crate::model::{Diagnostic, Object, Policy, Severity};

/// Up to this number of errors in a policy, only the invalid parts are replaced. Each error needs a pass over the whole
/// policy, so the `spec` of a policy with more errors is replaced as a whole.
const MAX_REPLACED: usize = 64;

impl ObjectReader {
    /// Parses a policy. Invalid parts are replaced, one after the other, until the policy has no errors.
    pub(super) fn parse_policy(&mut self, location: &ObjectLocation<'_>, mut value: Value) {
        let original = if self.is_offline { value.clone() } else { Value::Null };
        let mut handled: Vec<FieldError> = Vec::new();
        let mut replaced: Vec<FieldPath> = Vec::new();
        let duplicates = location.tree.duplicates_below(&location.root);
        let mut pending: Vec<(FieldPath, String)> = duplicates.map(|path| (path, DUPLICATE_KEY.to_owned())).collect();
        let spec = FieldPath(vec![Step::Key("spec".to_owned())]);
        if size::is_too_large(&value) {
            pending = vec![(spec.clone(), size::TOO_LARGE.to_owned())];
        }
        let api = loop {
            let pending_in_spec = pending.iter().filter(|(path, _)| path.relative_to(&spec).is_some()).count();
            if replaced.len() + pending_in_spec > MAX_REPLACED && !replaced.contains(&spec) {
                pending = vec![(spec.clone(), format!("has more than {MAX_REPLACED} errors"))];
            }
            for (path, message) in pending.drain(..) {
                let Some((replaced_path, consequence)) = salvage::replace_invalid(&mut value, &path) else {
                    return self.report_ignored(location, &path, &format!("{message}; the whole policy is ignored"));
                };
                let in_spec = path.relative_to(&spec).is_some();
                let severity = if in_spec { Severity::Error } else { Severity::Warning };
                handled.push(FieldError { severity, path, message: format!("{message}; {consequence}") });
                if in_spec {
                    replaced.push(replaced_path);
                }
            }
            let (result, unknown) = deserialize::<NetworkPolicy>(value.clone());
            for path in unknown {
                // Old API servers stored a `status` in policies. It is not used.
                if path.to_string() != "status" {
                    pending.push((path, UNKNOWN_FIELD.to_owned()));
                }
            }
            match result {
                Ok(api) if pending.is_empty() => break api,
                Ok(_) => {}
                Err(error) => pending.push(error),
            }
        };
        let mut policy = Policy::from_api(&api);
        self.record_policy_details(location, &policy, original);
        // Omits what `from_api` reports about replaced parts: `handled` has better messages, which are reported below.
        let replaced: Vec<String> = replaced.iter().map(ToString::to_string).collect();
        policy.diagnostics.retain(|diagnostic| !replaced.iter().any(|parent| is_within(&diagnostic.field, parent)));
        let diagnostics_of_policy: Vec<Diagnostic> = policy.diagnostics.clone();
        for FieldError { severity, path, message } in handled {
            self.report(location, severity, &path, &message);
            policy.diagnostics.push(Diagnostic { severity, field: path.to_string(), message });
        }
        self.report_diagnostics(location, &diagnostics_of_policy);
        self.add_object(location, Object::Policy(policy));
    }
}

/// Returns whether `field` is `parent` or a part of it.
fn is_within(field: &str, parent: &str) -> bool {
    field.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
