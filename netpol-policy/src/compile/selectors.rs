//! Peer selectors: the distinct peer conditions of the rules in use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::{IpBlock, NamespaceName, Protocol, Selector};

/// A peer selector: one distinct condition on a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum PeerSelector {
    /// Pods by labels.
    Pods {
        /// Their namespaces.
        namespaces: Namespaces,
        /// Their labels.
        pods: Selector,
    },
    /// Addresses in an ipBlock.
    Block(IpBlock),
    /// Pods that have a port with this name and protocol. The port number is part of the signature.
    Named(Arc<str>, Protocol),
}

/// The namespaces of a peer's pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Namespaces {
    /// The policy's own namespace.
    Own(NamespaceName),
    /// Namespaces selected by labels.
    Selected(Selector),
}

/// ID of a peer selector while it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerSelectorId(pub(super) u64);

/// The peer selectors in use.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerSelectors {
    ids: HashMap<PeerSelector, PeerSelectorId>,
    entries: BTreeMap<PeerSelectorId, AtomEntry>,
    next: u64,
    /// Peer selectors for pods in one namespace.
    by_namespace: HashMap<NamespaceName, BTreeSet<PeerSelectorId>>,
    /// Peer selectors for pods in namespaces selected by labels.
    cross_namespace: BTreeSet<PeerSelectorId>,
}

#[derive(Clone, Debug)]
struct AtomEntry {
    selector: PeerSelector,
    users: usize,
}

impl PeerSelectors {
    /// Adds a user to a peer selector. Returns its ID and whether it is new.
    pub(super) fn acquire(&mut self, selector: PeerSelector) -> (PeerSelectorId, bool) {
        if let Some(id) = self.ids.get(&selector) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.users += 1;
            }
            return (*id, false);
        }
        let id = PeerSelectorId(self.next);
        self.next += 1;
        match &selector {
            PeerSelector::Pods { namespaces: Namespaces::Own(name), .. } => {
                self.by_namespace.entry(name.clone()).or_default().insert(id);
            }
            PeerSelector::Pods { namespaces: Namespaces::Selected(_), .. } => {
                self.cross_namespace.insert(id);
            }
            PeerSelector::Block(_) | PeerSelector::Named(..) => {}
        }
        self.ids.insert(selector.clone(), id);
        self.entries.insert(id, AtomEntry { selector, users: 1 });
        (id, true)
    }

    /// Removes a user of a peer selector. Returns the peer selector if that was the last user.
    pub(super) fn release(&mut self, id: PeerSelectorId) -> Option<PeerSelector> {
        let entry = self.entries.get_mut(&id)?;
        entry.users -= 1;
        if entry.users > 0 {
            return None;
        }
        let selector = self.entries.remove(&id)?.selector;
        self.ids.remove(&selector);
        self.cross_namespace.remove(&id);
        if let PeerSelector::Pods { namespaces: Namespaces::Own(name), .. } = &selector
            && let Some(selectors) = self.by_namespace.get_mut(name)
        {
            selectors.remove(&id);
            if selectors.is_empty() {
                self.by_namespace.remove(name);
            }
        }
        Some(selector)
    }

    /// Returns whether a peer selector is a block.
    pub(super) fn is_block(&self, id: PeerSelectorId) -> bool {
        self.entries.get(&id).is_some_and(|entry| matches!(entry.selector, PeerSelector::Block(_)))
    }

    /// Returns the ID of a peer selector in use.
    pub(super) fn find(&self, selector: &PeerSelector) -> Option<PeerSelectorId> {
        self.ids.get(selector).copied()
    }

    /// Returns the peer selectors that may select pods of a namespace.
    pub(super) fn for_namespace(
        &self,
        namespace: &NamespaceName,
    ) -> impl Iterator<Item = (PeerSelectorId, &PeerSelector)> {
        let own = self.by_namespace.get(namespace).into_iter().flatten();
        own.chain(&self.cross_namespace).filter_map(|id| Some((*id, &self.entries.get(id)?.selector)))
    }
}
