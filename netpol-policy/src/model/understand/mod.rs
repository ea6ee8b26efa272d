//! Parses API objects into the model, with a `from_api` for each kind. These never fail: invalid or unsupported parts
//! become a [`Problem`] and match nothing.

mod block;
mod pod;
mod policy;
mod ports;
mod selector;
mod service;
#[cfg(test)]
mod tests;

use super::{Problem, Severity};

/// Collects the diagnostics of one object.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { severity: Severity::Error, field: field.into(), message: message.into() });
    }

    fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { severity: Severity::Warning, field: field.into(), message: message.into() });
    }
}
