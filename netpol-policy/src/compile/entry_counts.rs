//! Counts the map entries that are charged to each account of the memory limit ([`super::memory_limit::Account`]):
//! `PORTS` entries, and `ALLOW` entries for classes of pods. They are counted during compilation, because their number
//! cannot be computed in advance.

use std::collections::BTreeMap;

use super::memory_limit::Account;

/// Number of entries of one map (`PORTS` or `ALLOW`), by the account that they are charged to.
#[derive(Clone, Debug, Default)]
pub(super) struct EntryCounts {
    total: u64,
    by_account: BTreeMap<Account, u64>,
}

impl EntryCounts {
    pub(super) fn add(&mut self, account: &Account, entries: u64) {
        self.total += entries;
        *self.by_account.entry(account.clone()).or_default() += entries;
    }

    pub(super) fn subtract(&mut self, account: &Account, entries: u64) {
        self.total -= entries;
        if let Some(count) = self.by_account.get_mut(account) {
            *count -= entries;
            if *count == 0 {
                self.by_account.remove(account);
            }
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn of_account(&self, account: &Account) -> u64 {
        self.by_account.get(account).copied().unwrap_or(0)
    }
}
