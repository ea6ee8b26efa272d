//! Counts map entries by account, where their number is known only after compilation.

use std::collections::BTreeMap;

use super::memory_limit::Account;

/// Number of entries of a map, by the account that they are charged to.
#[derive(Clone, Debug, Default)]
pub(super) struct EntryCounts {
    total: u64,
    of: BTreeMap<Account, u64>,
}

impl EntryCounts {
    pub(super) fn add(&mut self, account: &Account, entries: u64) {
        self.total += entries;
        *self.of.entry(account.clone()).or_default() += entries;
    }

    pub(super) fn subtract(&mut self, account: &Account, entries: u64) {
        self.total -= entries;
        if let Some(of) = self.of.get_mut(account) {
            *of -= entries;
            if *of == 0 {
                self.of.remove(account);
            }
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn of(&self, account: &Account) -> u64 {
        self.of.get(account).copied().unwrap_or(0)
    }
}
