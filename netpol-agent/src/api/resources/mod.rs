//! Resources that the main loop lists for API clients.

mod explain;
mod generations;
mod maps;
mod pods;
mod policies;
mod shadow;

pub use explain::{ExplainQuery, Generations, explain};
pub use generations::generations;
pub use maps::maps;
pub use pods::pods;
pub use policies::{PolicyQuery, policies};
pub use shadow::{ShadowQuery, shadow};

/// Returns an error if a query string has a parameter.
pub(super) fn no_parameters(query: &str) -> Result<(), String> {
    match netpol_api::parameters(query)?.first() {
        None => Ok(()),
        Some((name, _)) => Err(format!("`{name}` is not a parameter; this path has none")),
    }
}
