//! Peer selectors: the distinct peer conditions of the rules in use. A peer is an item of `from` or `to` of a policy.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::interned::Interned;
use crate::index::Index;
use crate::model::{IpBlock, NamespaceName, Protocol, Selector};

/// A peer selector: one distinct condition on a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum PeerSelector {
    /// Pods by labels.
    Pods {
        /// The namespaces of the pods.
        namespaces: Namespaces,
        /// The labels of the pods.
        pods: Selector,
    },
    /// Addresses in an ipBlock.
    Block(IpBlock),
    /// Pods that have a port with this name and protocol, for named ports of egress rules. The signature of an
    /// address (the set of peer selectors that the address matches) also stores the number of this port.
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

/// ID of a peer selector. It is valid as long as the peer selector is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerSelectorId(pub(super) u64);

/// The peer selectors in use.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerSelectors {
    selectors: Interned<PeerSelectorId, PeerSelector>,
    next: u64,
    /// Peer selectors for pods in one namespace.
    by_namespace: Index<NamespaceName, PeerSelectorId>,
    /// Peer selectors for pods in namespaces selected by labels.
    cross_namespace: BTreeSet<PeerSelectorId>,
}

impl PeerSelectors {
    /// Adds a user (a rule) to a peer selector. Returns the ID of the peer selector. If the peer selector is new, also
    /// returns the peer selector itself.
    pub(super) fn acquire(&mut self, selector: PeerSelector) -> (PeerSelectorId, Option<Arc<PeerSelector>>) {
        let (id, new) = self.selectors.acquire(selector, || {
            self.next += 1;
            PeerSelectorId(self.next - 1)
        });
        match new.as_deref() {
            Some(PeerSelector::Pods { namespaces: Namespaces::Own(name), .. }) => {
                self.by_namespace.insert(name.clone(), id);
            }
            Some(PeerSelector::Pods { namespaces: Namespaces::Selected(_), .. }) => {
                self.cross_namespace.insert(id);
            }
            Some(PeerSelector::Block(_) | PeerSelector::Named(..)) | None => {}
        }
        (id, new)
    }

    /// Removes a user of a peer selector. The peer selector stays until [`PeerSelectors::retire`].
    pub(super) fn release(&mut self, id: PeerSelectorId) {
        self.selectors.release(id);
    }

    /// Removes the peer selectors without users, and returns them.
    pub(super) fn retire(&mut self) -> Vec<(PeerSelectorId, Arc<PeerSelector>)> {
        let retired = self.selectors.retire();
        for (id, selector) in &retired {
            self.cross_namespace.remove(id);
            if let PeerSelector::Pods { namespaces: Namespaces::Own(name), .. } = &**selector {
                self.by_namespace.remove(name, id);
            }
        }
        retired
    }

    /// Returns whether a peer selector is a block.
    pub(super) fn is_block(&self, id: PeerSelectorId) -> bool {
        self.selectors.get(id).is_some_and(|selector| matches!(**selector, PeerSelector::Block(_)))
    }

    /// Returns the ID of a peer selector in use.
    pub(super) fn find(&self, selector: &PeerSelector) -> Option<PeerSelectorId> {
        self.selectors.find(selector)
    }

    /// Returns the peer selectors that may select pods of a namespace.
    pub(super) fn for_namespace(
        &self,
        namespace: &NamespaceName,
    ) -> impl Iterator<Item = (PeerSelectorId, &PeerSelector)> {
        let ids = self.by_namespace.get(namespace).iter().chain(&self.cross_namespace);
        ids.filter_map(|id| Some((*id, &**self.selectors.get(*id)?)))
    }
}
