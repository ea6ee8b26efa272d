//! What could not be written: remembered, told, tried again. Until it is written, the endpoints it is about are marked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AllowKey, Endpoint, IfIndex, PortKey};
use netpol_policy::model::Frontend;
use netpol_policy::tables::Change;

use crate::dataplane::{MapName, WriteError};

/// Names an entry, in the order in which entries are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    Port(PortKey, u32),
    Allow(AllowKey),
    Frontend(Frontend),
    Address(IpAddr),
    Prefix(IpNet),
}

/// Counts for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Writes that found a map full, since the agent started.
    pub full: BTreeMap<&'static str, u64>,
    /// Other writes that failed, since the agent started.
    pub failed: u64,
    /// Entries that are missing now.
    pub missing: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pending: BTreeMap<Entry, Change>,
    told: bool,
    full: BTreeMap<MapName, u64>,
    failed: u64,
    /// What was last told of each interface, and of all of them (index 0). It is tried again and again, and told once.
    troubles: BTreeMap<IfIndex, String>,
}

impl Failures {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The entries that are missing.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.pending.keys().cloned().collect()
    }

    /// What a missing entry is to be; `None` where it is written by now.
    pub(super) fn change(&self, entry: &Entry) -> Option<Change> {
        self.pending.get(entry).cloned()
    }

    pub(super) fn succeeded(&mut self, change: &Change) {
        if let Some(entry) = entry(change)
            && self.pending.remove(&entry).is_some()
            && self.pending.is_empty()
        {
            self.told = false;
            tracing::info!("everything that did not fit is written now");
        }
    }

    pub(super) fn failed(&mut self, change: &Change, error: &WriteError) {
        self.count(error);
        if let Some(entry) = entry(change) {
            self.pending.insert(entry, change.clone());
        }
        // A full map fails for every entry of a batch; one line says it all.
        if !std::mem::replace(&mut self.told, true) {
            tracing::error!(%error, "an entry could not be written: isolated pods drop what it would allow, until it can be");
        }
    }

    pub(super) fn endpoint(&mut self, what: &'static str, ifindex: IfIndex, error: &WriteError) {
        self.count(error);
        self.trouble(ifindex, format!("cannot {what} an endpoint; it is tried again: {error}"));
    }

    /// Tells what goes wrong with an interface, unless that is known.
    pub(super) fn trouble(&mut self, ifindex: IfIndex, text: String) {
        if self.troubles.get(&ifindex) != Some(&text) {
            tracing::error!(interface = %ifindex, "{text}");
            self.troubles.insert(ifindex, text);
        }
    }

    /// An interface is as it should be, or gone.
    pub(super) fn no_trouble(&mut self, ifindex: IfIndex) {
        self.troubles.remove(&ifindex);
    }

    /// Whether an interface is not as it should be.
    pub(super) fn has_trouble(&self) -> bool {
        self.troubles.keys().any(|ifindex| *ifindex != IfIndex(0))
    }

    /// What was last told of an interface.
    pub(super) fn trouble_of(&self, ifindex: IfIndex) -> Option<&str> {
        self.troubles.get(&ifindex).map(String::as_str)
    }

    /// Counts an endpoint for which there is no number left.
    pub(super) fn no_endpoint(&mut self) {
        *self.full.entry(MapName::Endpoints).or_default() += 1;
    }

    fn count(&mut self, error: &WriteError) {
        match error {
            WriteError::Full { map, .. } => *self.full.entry(*map).or_default() += 1,
            WriteError::Failed { .. } => self.failed += 1,
        }
    }

    /// Whether something this endpoint needs, or may need, is missing.
    pub(super) fn affect(&self, endpoint: &Endpoint) -> bool {
        self.pending.keys().any(|entry| match entry {
            Entry::Allow(key) => [endpoint.ingress.rule_set, endpoint.egress.rule_set].contains(&key.rule_set),
            Entry::Port(..) | Entry::Frontend(_) | Entry::Address(_) | Entry::Prefix(_) => true,
        })
    }

    /// Whether a prefix is missing: what a block excepts would be taken for part of the block.
    pub(super) fn blur_prefixes(&self) -> bool {
        self.pending.keys().any(|entry| matches!(entry, Entry::Prefix(_)))
    }

    pub(super) fn problems(&self) -> Problems {
        let full = self.full.iter().map(|(map, count)| (map.name(), *count)).collect();
        Problems { full, failed: self.failed, missing: self.pending.len() }
    }
}

fn entry(change: &Change) -> Option<Entry> {
    match change {
        Change::PutPort { prefix_len, key, .. } | Change::DeletePort { prefix_len, key } => {
            Some(Entry::Port(*key, *prefix_len))
        }
        Change::PutAllow(key, _) | Change::DeleteAllow(key) => Some(Entry::Allow(*key)),
        Change::PutAddress(address, _) | Change::DeleteAddress(address) => Some(Entry::Address(*address)),
        Change::PutPrefix(net, _) | Change::DeletePrefix(net) => Some(Entry::Prefix(*net)),
        Change::PutFrontend(frontend, _) | Change::DeleteFrontend(frontend) => Some(Entry::Frontend(*frontend)),
        Change::PutEndpoint(..) | Change::DeleteEndpoint(_) | Change::Rejudge(_) => None,
    }
}

/// The deletion that is safe where a replacement failed. Not so for prefixes: deleting one uncovers a wider one.
pub(super) fn fallback(change: &Change) -> Option<Change> {
    match change {
        Change::PutAllow(key, _) => Some(Change::DeleteAllow(*key)),
        Change::PutAddress(address, _) => Some(Change::DeleteAddress(*address)),
        _ => None,
    }
}

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
