//! Sets of peer selectors (distinct peer conditions of rules), stored as bitmaps of 64-bit words. Peer selectors that
//! are created together have consecutive IDs, so a set of thousands of peer selectors takes only tens of words. Sets of
//! this size are fast to compare, hash and copy.

use super::selectors::PeerSelectorId;

/// A set of peer selectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct PeerSelectorSet {
    /// The index of each word, and the word itself; sorted by index. Words without set bits are not stored.
    words: Vec<(u64, u64)>,
}

/// Returns the index of the word for an ID, and the word in which only the bit for this ID is set.
fn word_index_and_bit(id: PeerSelectorId) -> (u64, u64) {
    (id.0 / 64, 1 << (id.0 % 64))
}

impl PeerSelectorSet {
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    #[cfg(test)]
    fn contains(&self, id: PeerSelectorId) -> bool {
        let (word_index, bit) = word_index_and_bit(id);
        let found = self.words.binary_search_by_key(&word_index, |(index, _)| *index);
        found.is_ok_and(|position| self.words[position].1 & bit != 0)
    }

    /// Adds a peer selector. Returns whether it is new.
    pub(super) fn insert(&mut self, id: PeerSelectorId) -> bool {
        let (word_index, bit) = word_index_and_bit(id);
        match self.words.binary_search_by_key(&word_index, |(index, _)| *index) {
            Ok(position) => {
                let present = self.words[position].1 & bit != 0;
                self.words[position].1 |= bit;
                !present
            }
            Err(position) => {
                self.words.insert(position, (word_index, bit));
                true
            }
        }
    }

    /// Removes a peer selector. Returns whether it was present.
    pub(super) fn remove(&mut self, id: PeerSelectorId) -> bool {
        let (word_index, bit) = word_index_and_bit(id);
        let Ok(position) = self.words.binary_search_by_key(&word_index, |(index, _)| *index) else { return false };
        let present = self.words[position].1 & bit != 0;
        self.words[position].1 &= !bit;
        if self.words[position].1 == 0 {
            self.words.remove(position);
        }
        present
    }

    /// Adds all peer selectors of another set.
    pub(super) fn extend(&mut self, other: &Self) {
        if self.is_empty() {
            self.words.clone_from(&other.words);
            return;
        }
        for (word_index, bits) in &other.words {
            match self.words.binary_search_by_key(word_index, |(index, _)| *index) {
                Ok(position) => self.words[position].1 |= bits,
                Err(position) => self.words.insert(position, (*word_index, *bits)),
            }
        }
    }

    /// Returns the peer selectors that are not in the other set.
    pub(super) fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = PeerSelectorId> + 'a {
        let mut others = other.words.iter().peekable();
        let words = self.words.iter().map(move |(index, bits)| {
            while others.next_if(|(other, _)| other < index).is_some() {}
            let other_bits = others.peek().filter(|(other, _)| other == index).map_or(0, |(_, bits)| *bits);
            (*index, bits & !other_bits)
        });
        words.flat_map(|(index, bits)| ids(index, bits))
    }

    /// Returns the peer selectors in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = PeerSelectorId> + '_ {
        self.words.iter().flat_map(|(index, bits)| ids(*index, *bits))
    }
}

/// Returns the IDs of the bits that are set in the word `bits`.
fn ids(word_index: u64, mut bits: u64) -> impl Iterator<Item = PeerSelectorId> {
    std::iter::from_fn(move || {
        let bit = bits.trailing_zeros();
        // Clears the lowest bit; ends the iteration at zero.
        bits &= bits.checked_sub(1)?;
        Some(PeerSelectorId(word_index * 64 + u64::from(bit)))
    })
}

impl FromIterator<PeerSelectorId> for PeerSelectorSet {
    fn from_iter<I: IntoIterator<Item = PeerSelectorId>>(ids: I) -> Self {
        let mut set = Self::default();
        for id in ids {
            set.insert(id);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn behaves_like_a_btree_set() {
        let (mut set, mut present) = (PeerSelectorSet::default(), BTreeSet::new());
        // Consecutive IDs, IDs that are far apart, and duplicates.
        for step in 0..500_u64 {
            let id = PeerSelectorId((step * 37) % 200 + if step % 7 == 0 { 1 << 40 } else { 0 });
            assert_eq!(set.insert(id), present.insert(id));
            let other = PeerSelectorId((step * 53) % 210);
            assert_eq!(set.contains(other), present.contains(&other));
            if step % 3 == 0 {
                assert_eq!(set.remove(other), present.remove(&other));
            }
            assert_eq!(set.iter().collect::<BTreeSet<_>>(), present);
        }
        let half: PeerSelectorSet = present.iter().copied().step_by(2).collect();
        let rest: BTreeSet<_> = set.difference(&half).collect();
        assert_eq!(rest, present.iter().copied().skip(1).step_by(2).collect());
        let mut all = half.clone();
        all.extend(&set);
        assert_eq!(all, set);
        for id in present {
            set.remove(id);
        }
        assert_eq!(set, PeerSelectorSet::default(), "an empty word must be removed");
    }
}
