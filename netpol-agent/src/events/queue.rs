//! A queue of items. Each item belongs to a key, which stands for a pod. The queue itself has no limit. If there are
//! too many items, the owner of the queue (the buffer of records, or the output of lines) removes items of the key that
//! uses the most memory. So a flood of items of one pod does not remove the items of other pods.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Items in the order of their arrival.
#[derive(Debug)]
pub(super) struct KeyedQueue<T> {
    items: BTreeMap<u64, Item<T>>,
    /// The number that the next item gets. Items are numbered in the order of their arrival.
    next_number: u64,
    by_key: HashMap<u32, ItemsOfKey>,
    /// The size of each key's items in bytes, and the key. The last entry is the key with the most bytes.
    sizes: BTreeSet<(usize, u32)>,
    bytes: usize,
}

#[derive(Debug)]
struct Item<T> {
    key: u32,
    bytes: usize,
    value: T,
}

/// The items of a key.
#[derive(Debug, Default)]
struct ItemsOfKey {
    /// The numbers of the items, the oldest first.
    numbers: VecDeque<u64>,
    bytes: usize,
}

impl<T> Default for KeyedQueue<T> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), next_number: 0, by_key: HashMap::new(), sizes: BTreeSet::new(), bytes: 0 }
    }
}

impl<T> KeyedQueue<T> {
    /// Returns the number of items.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns the size of all items in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the size of a key's items.
    pub(super) fn bytes_of(&self, key: u32) -> usize {
        self.by_key.get(&key).map_or(0, |of_key| of_key.bytes)
    }

    /// Returns the key with the most bytes in total, and this number of bytes; `None` if there are no items.
    pub(super) fn largest(&self) -> Option<(u32, usize)> {
        self.sizes.last().map(|(bytes, key)| (*key, *bytes))
    }

    /// Returns all items, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.values().map(|item| &item.value)
    }

    /// Adds an item.
    pub(super) fn push(&mut self, key: u32, bytes: usize, value: T) {
        let number = self.next_number;
        self.next_number += 1;
        self.items.insert(number, Item { key, bytes, value });
        self.bytes += bytes;
        self.change(key, |of_key| {
            of_key.numbers.push_back(number);
            of_key.bytes += bytes;
        });
    }

    /// Removes the oldest item.
    pub(super) fn pop(&mut self) -> Option<T> {
        let oldest = self.items.first_key_value()?.1.key;
        self.remove(oldest, VecDeque::pop_front)
    }

    /// Removes the oldest item of a key.
    pub(super) fn remove_oldest(&mut self, key: u32) -> Option<T> {
        self.remove(key, VecDeque::pop_front)
    }

    /// Removes the newest item of a key.
    pub(super) fn remove_newest(&mut self, key: u32) -> Option<T> {
        self.remove(key, VecDeque::pop_back)
    }

    /// Removes one item of a key. `pop_number` selects it.
    fn remove(&mut self, key: u32, pop_number: impl FnOnce(&mut VecDeque<u64>) -> Option<u64>) -> Option<T> {
        let number = pop_number(&mut self.by_key.get_mut(&key)?.numbers)?;
        let Item { bytes, value, .. } = self.items.remove(&number)?;
        self.bytes -= bytes;
        self.change(key, |of_key| of_key.bytes -= bytes);
        Some(value)
    }

    /// Changes the items of a key, and updates `sizes`.
    fn change(&mut self, key: u32, change: impl FnOnce(&mut ItemsOfKey)) {
        let of_key = self.by_key.entry(key).or_default();
        self.sizes.remove(&(of_key.bytes, key));
        change(of_key);
        if of_key.numbers.is_empty() {
            self.by_key.remove(&key);
        } else {
            self.sizes.insert((of_key.bytes, key));
        }
    }
}

#[cfg(test)]
impl<T> KeyedQueue<T> {
    /// Returns how many items a key has. First checks the numbers and sizes of all items.
    pub(super) fn checked_len_of(&self, key: u32) -> usize {
        let mut expected: BTreeMap<u32, (Vec<u64>, usize)> = BTreeMap::new();
        for (number, item) in &self.items {
            let (numbers, bytes) = expected.entry(item.key).or_default();
            numbers.push(*number);
            *bytes += item.bytes;
        }
        let of_key =
            |(key, of_key): (&u32, &ItemsOfKey)| (*key, (of_key.numbers.iter().copied().collect(), of_key.bytes));
        assert_eq!(self.by_key.iter().map(of_key).collect::<BTreeMap<_, _>>(), expected);
        assert_eq!(self.sizes, expected.iter().map(|(key, (_, bytes))| (*bytes, *key)).collect());
        assert_eq!(self.bytes, self.items.values().map(|item| item.bytes).sum::<usize>());
        expected.get(&key).map_or(0, |(numbers, _)| numbers.len())
    }
}
