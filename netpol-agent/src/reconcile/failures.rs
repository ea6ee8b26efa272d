//! Tracks map entries that could not be written, so that the reconciler retries the writes (see `work`). Until a
//! retry succeeds, the reconciler marks endpoints as incomplete if they may need the missing entry (see `desired`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AllowKey, DirectionPolicy, PortKey};
use netpol_policy::model::Frontend;
use netpol_policy::tables::Change;

use netpol_dataplane::{MapName, WriteError};

/// Identifies a map entry. Entries sort in the order in which retries write them: `ALLOW` refers to port sets, so ports
/// come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EntryKey {
    /// The key, and its prefix length.
    Port(PortKey, u32),
    Allow(AllowKey),
    Frontend(Frontend),
    Address(IpAddr),
    Prefix(IpNet),
}

/// Counts of failed writes, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailedWrites {
    /// Writes that failed because a map was full, since the agent started.
    pub full: BTreeMap<&'static str, u64>,
    /// Other failed writes, since the agent started.
    pub failed: u64,
    /// Entries that are missing now.
    pub missing: usize,
}

/// Failed writes, and the entries that are missing because of them.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// The change that failed, for each missing entry. An obsolete entry that could not be deleted counts as missing,
    /// too.
    pending: BTreeMap<EntryKey, Change>,
    /// Whether a failure was logged. Reset as soon as no entry is missing.
    reported: bool,
    full: BTreeMap<MapName, u64>,
    failed: u64,
}

impl Failures {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns the missing entries.
    pub(super) fn entries(&self) -> Vec<EntryKey> {
        self.pending.keys().cloned().collect()
    }

    /// Returns the failed change of a missing entry; `None` if the entry was written in the meantime.
    pub(super) fn change(&self, entry: &EntryKey) -> Option<Change> {
        self.pending.get(entry).cloned()
    }

    /// Records that a change was written.
    pub(super) fn succeeded(&mut self, change: &Change) {
        if let Some(key) = entry_key(change)
            && self.pending.remove(&key).is_some()
            && self.pending.is_empty()
        {
            self.reported = false;
            tracing::info!("all map entries that could not be written are written now");
        }
    }

    /// Records that a change could not be written, and logs the first of such failures.
    pub(super) fn failed(&mut self, change: &Change, error: &WriteError) {
        self.count(error);
        if let Some(key) = entry_key(change) {
            self.pending.insert(key, change.clone());
        }
        // If a map is full, the writes of all further entries fail. One log line is enough.
        if !std::mem::replace(&mut self.reported, true) {
            tracing::error!(%error, "cannot write a map entry; retrying; until then isolated pods drop what it would allow");
        }
    }

    /// Counts an endpoint that got no ID because all IDs are in use.
    pub(super) fn count_missing_id(&mut self) {
        *self.full.entry(MapName::Endpoints).or_default() += 1;
    }

    /// Counts a failed write.
    pub(super) fn count(&mut self, error: &WriteError) {
        match error {
            WriteError::Full { map, .. } => *self.full.entry(*map).or_default() += 1,
            WriteError::Failed { .. } => self.failed += 1,
        }
    }

    /// Returns whether an endpoint with these policies needs, or may need, one of the missing entries.
    pub(super) fn affects(&self, policies: [DirectionPolicy; 2]) -> bool {
        self.pending.keys().any(|entry| match entry {
            EntryKey::Allow(key) => policies.iter().any(|policy| policy.rule_set == key.rule_set),
            EntryKey::Port(..) | EntryKey::Frontend(_) | EntryKey::Address(_) | EntryKey::Prefix(_) => true,
        })
    }

    /// Returns whether the entry of a prefix is missing. If it is the prefix of an `except`, the excluded addresses may
    /// match the entry of the block's `cidr` instead, and be allowed.
    pub(super) fn is_prefix_missing(&self) -> bool {
        self.pending.keys().any(|entry| matches!(entry, EntryKey::Prefix(_)))
    }

    pub(super) fn failed_writes(&self) -> FailedWrites {
        let full = self.full.iter().map(|(map, count)| (map.name(), *count)).collect();
        FailedWrites { full, failed: self.failed, missing: self.pending.len() }
    }
}

fn entry_key(change: &Change) -> Option<EntryKey> {
    match change {
        Change::PutPort { prefix_len, key, .. } | Change::DeletePort { prefix_len, key } => {
            Some(EntryKey::Port(*key, *prefix_len))
        }
        Change::PutAllow(key, _) | Change::DeleteAllow(key) => Some(EntryKey::Allow(*key)),
        Change::PutAddress(address, _) | Change::DeleteAddress(address) => Some(EntryKey::Address(*address)),
        Change::PutPrefix(net, _) | Change::DeletePrefix(net) => Some(EntryKey::Prefix(*net)),
        Change::PutFrontend(frontend, _) | Change::DeleteFrontend(frontend) => Some(EntryKey::Frontend(*frontend)),
        Change::PutEndpoint(..) | Change::DeleteEndpoint(_) | Change::Reevaluate(_) => None,
    }
}

/// `change` should have replaced an entry, but failed. Returns the change that deletes the old entry; `None` if this
/// deletion could allow more. For example, the addresses of a deleted prefix would match a wider prefix.
pub(super) fn safe_deletion(change: &Change) -> Option<Change> {
    match change {
        Change::PutAllow(key, _) => Some(Change::DeleteAllow(*key)),
        Change::PutAddress(address, _) => Some(Change::DeleteAddress(*address)),
        _ => None,
    }
}

/// Returns whether a change frees space in a map.
pub(super) fn makes_room(change: &Change) -> bool {
    matches!(
        change,
        Change::DeletePort { .. }
            | Change::DeleteAllow(_)
            | Change::DeleteAddress(_)
            | Change::DeletePrefix(_)
            | Change::DeleteFrontend(_)
    )
}
