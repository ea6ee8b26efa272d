//! How a source is: for `/readyz` and for metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Shared with the source, which keeps it up to date.
#[derive(Clone, Debug, Default)]
pub struct SourceState(Arc<Mutex<BTreeMap<&'static str, KindState>>>);

/// One kind of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindState {
    /// The full list has come at least once.
    pub listed: bool,
    /// What is known follows what there is.
    pub in_sync: bool,
    /// Objects known.
    pub objects: usize,
    /// Full lists after the first.
    pub relists: u64,
    /// Failures by reason: an HTTP status, `connection`, `silent`, `garbled`.
    pub errors: BTreeMap<String, u64>,
    /// When something last came of it, bookmarks included.
    pub heard: Option<Instant>,
    /// What is wrong at the moment.
    pub trouble: Option<String>,
}

impl SourceState {
    /// What is known of each kind, by its plural name. Empty where the source has no such thing.
    pub fn kinds(&self) -> BTreeMap<&'static str, KindState> {
        self.lock().clone()
    }

    /// What the first batch waits for, for people; `None` once nothing is missing.
    pub fn waiting(&self) -> Option<String> {
        let kinds = self.lock();
        let missing: Vec<&str> = kinds.iter().filter(|(_, kind)| !kind.listed).map(|(name, _)| *name).collect();
        let trouble = kinds.values().filter(|kind| !kind.listed).find_map(|kind| kind.trouble.clone());
        let trouble = trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
        (!missing.is_empty()).then(|| format!("waiting for {} from the API server{trouble}", missing.join(", ")))
    }

    pub(super) fn update(&self, kind: &'static str, change: impl FnOnce(&mut KindState)) {
        change(self.lock().entry(kind).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, KindState>> {
        // Whole after each change, whatever became of who made it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
