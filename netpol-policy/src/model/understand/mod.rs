//! From the API's types to the model: `from_api` of each kind. Whatever is not understood becomes a [`Problem`] and matches
//! nothing; none of these can fail.

mod block;
mod pod;
mod policy;
mod ports;
mod selector;
mod service;
#[cfg(test)]
mod tests;

use super::{Problem, Severity};

/// Collects what was not understood while one object is read.
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
