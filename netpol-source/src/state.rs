//! The state of a source (API server or directory of manifests), for `/readyz` and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The state of each kind of objects. The source updates this state.
#[derive(Clone, Debug, Default)]
pub struct SourceState(Arc<Mutex<BTreeMap<&'static str, KindState>>>);

/// The state of one kind of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindState {
    /// Whether the full list was received at least once.
    pub listed: bool,
    /// Whether the agent has all current objects of this kind.
    pub in_sync: bool,
    /// Number of objects.
    pub objects: usize,
    /// Number of full lists after the first.
    pub relists: u64,
    /// Number of failed requests by reason: an HTTP status, `connection`, `timeout`, `invalid-response`.
    pub errors: BTreeMap<String, u64>,
    /// When data of this kind, including bookmarks, was last received.
    pub last_received: Option<Instant>,
    /// Why objects of this kind cannot be read at the moment; `None` if they can.
    pub current_error: Option<String>,
}

impl SourceState {
    /// Returns the state of each kind by its plural name. Empty if the source is a directory.
    pub fn kinds(&self) -> BTreeMap<&'static str, KindState> {
        self.lock().clone()
    }

    /// Describes what the source's first batch of changes waits for; `None` once all kinds are listed.
    pub fn waiting(&self) -> Option<String> {
        let kinds = self.lock();
        let missing: Vec<&str> = kinds.iter().filter(|(_, kind)| !kind.listed).map(|(name, _)| *name).collect();
        let current_error = kinds.values().filter(|kind| !kind.listed).find_map(|kind| kind.current_error.clone());
        let current_error = current_error.map(|current_error| format!(": {current_error}")).unwrap_or_default();
        (!missing.is_empty()).then(|| format!("waiting for {} from the API server{current_error}", missing.join(", ")))
    }

    pub(super) fn update(&self, kind: &'static str, change: impl FnOnce(&mut KindState)) {
        change(self.lock().entry(kind).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, KindState>> {
        // The map is consistent even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
