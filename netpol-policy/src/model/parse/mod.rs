//! Parses API objects into the model, with a function `from_api` for each kind. These functions never fail. They
//! report an invalid or unsupported part of an object as a [`Diagnostic`]. This part matches nothing.

mod block;
mod mode;
mod pod;
mod policy;
mod ports;
mod selector;
mod service;
#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{Diagnostic, Selector, Severity};

/// Parses a selector. An invalid selector is marked by [`Selector::invalid`].
pub(super) fn label_selector(api: &LabelSelector) -> Selector {
    selector::selector(Some(api), "", &mut Diagnostics::default())
}

/// Collects the diagnostics of one object.
#[derive(Debug, Default)]
struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Diagnostic { severity: Severity::Error, field: field.into(), message: message.into() });
    }

    fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Diagnostic { severity: Severity::Warning, field: field.into(), message: message.into() });
    }
}
