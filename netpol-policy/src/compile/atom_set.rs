//! Sets of atoms, 64 to a word. Atoms that are made together have numbers beside each other, so that a set of thousands takes
//! tens of words: it is compared, hashed and copied as quickly as that.

use super::atoms::AtomId;

/// A set of atoms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct AtomSet {
    /// Which 64 atoms, and which of them; sorted, and without empty words.
    words: Vec<(u64, u64)>,
}

fn place(id: AtomId) -> (u64, u64) {
    (id.0 / 64, 1 << (id.0 % 64))
}

impl AtomSet {
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    #[cfg(test)]
    fn contains(&self, id: AtomId) -> bool {
        let (word, bit) = place(id);
        let found = self.words.binary_search_by_key(&word, |(word, _)| *word);
        found.is_ok_and(|index| self.words[index].1 & bit != 0)
    }

    /// Adds an atom; whether it is new.
    pub(super) fn insert(&mut self, id: AtomId) -> bool {
        let (word, bit) = place(id);
        match self.words.binary_search_by_key(&word, |(word, _)| *word) {
            Ok(index) => {
                let known = self.words[index].1 & bit != 0;
                self.words[index].1 |= bit;
                !known
            }
            Err(index) => {
                self.words.insert(index, (word, bit));
                true
            }
        }
    }

    /// Removes an atom; whether it was there.
    pub(super) fn remove(&mut self, id: AtomId) -> bool {
        let (word, bit) = place(id);
        let Ok(index) = self.words.binary_search_by_key(&word, |(word, _)| *word) else { return false };
        let known = self.words[index].1 & bit != 0;
        self.words[index].1 &= !bit;
        if self.words[index].1 == 0 {
            self.words.remove(index);
        }
        known
    }

    /// Adds all atoms of another set.
    pub(super) fn extend(&mut self, other: &Self) {
        if self.is_empty() {
            self.words.clone_from(&other.words);
            return;
        }
        for (word, bits) in &other.words {
            match self.words.binary_search_by_key(word, |(word, _)| *word) {
                Ok(index) => self.words[index].1 |= bits,
                Err(index) => self.words.insert(index, (*word, *bits)),
            }
        }
    }

    /// The atoms that the other set does not have.
    pub(super) fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = AtomId> + 'a {
        let mut others = other.words.iter().peekable();
        let words = self.words.iter().map(move |(word, bits)| {
            while others.next_if(|(other, _)| other < word).is_some() {}
            let known = others.peek().filter(|(other, _)| other == word).map_or(0, |(_, bits)| *bits);
            (*word, bits & !known)
        });
        words.flat_map(|(word, bits)| ids(word, bits))
    }

    /// Its atoms, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = AtomId> + '_ {
        self.words.iter().flat_map(|(word, bits)| ids(*word, *bits))
    }
}

fn ids(word: u64, mut bits: u64) -> impl Iterator<Item = AtomId> {
    std::iter::from_fn(move || {
        let bit = bits.trailing_zeros();
        // Clears the lowest bit; there is none left at zero.
        bits &= bits.checked_sub(1)?;
        Some(AtomId(word * 64 + u64::from(bit)))
    })
}

impl FromIterator<AtomId> for AtomSet {
    fn from_iter<I: IntoIterator<Item = AtomId>>(ids: I) -> Self {
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
    fn it_is_a_set() {
        let (mut set, mut known) = (AtomSet::default(), BTreeSet::new());
        // Some numbers beside each other, some far apart, some twice.
        for step in 0..500_u64 {
            let id = AtomId((step * 37) % 200 + if step % 7 == 0 { 1 << 40 } else { 0 });
            assert_eq!(set.insert(id), known.insert(id));
            let other = AtomId((step * 53) % 210);
            assert_eq!(set.contains(other), known.contains(&other));
            if step % 3 == 0 {
                assert_eq!(set.remove(other), known.remove(&other));
            }
            assert_eq!(set.iter().collect::<BTreeSet<_>>(), known);
        }
        let half: AtomSet = known.iter().copied().step_by(2).collect();
        let rest: BTreeSet<_> = set.difference(&half).collect();
        assert_eq!(rest, known.iter().copied().skip(1).step_by(2).collect());
        let mut all = half.clone();
        all.extend(&set);
        assert_eq!(all, set);
        for id in known {
            set.remove(id);
        }
        assert_eq!(set, AtomSet::default(), "no empty word is left");
    }
}
