//! Parses amounts of memory on the command line.

use std::fmt;
use std::str::FromStr;

use netpol_policy::compile::ALLOW_ENTRY;

/// Units, as in Kubernetes: `Gi` stands for a factor of 2 to the power of 30.
const UNITS: [(&str, u32); 3] = [("Gi", 30), ("Mi", 20), ("Ki", 10)];

/// Kernel memory for policies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PolicyMemory(pub(super) u64);

impl PolicyMemory {
    /// Returns the capacity of the BPF map `ALLOW`: as many entries of [`ALLOW_ENTRY`] bytes as fit into the memory.
    /// The map is a hash map, so 16 bytes for each entry of its capacity are reserved in advance. The other maps of
    /// policies are tries, which only use memory for existing entries. So their capacities do not depend on `self`.
    pub(super) fn allow_entries(self) -> u32 {
        u32::try_from(self.0 / ALLOW_ENTRY).unwrap_or(u32::MAX).min(1 << 26)
    }
}

impl Default for PolicyMemory {
    fn default() -> Self {
        Self(64 << 20)
    }
}

impl FromStr for PolicyMemory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not an amount of memory; use a format like 67108864, 65536Ki or 64Mi");
        bytes(text).map(Self).ok_or_else(error)
    }
}

/// Parses a number of bytes with or without a unit.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, shift) =
        UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl fmt::Display for PolicyMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, shift): &&(&str, u32)| self.0 > 0 && self.0.trailing_zeros() >= *shift;
        match UNITS.iter().find(exact) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_parsed_as_in_kubernetes() {
        for (text, bytes) in [("0", 0), ("1000", 1000), ("64Ki", 64 << 10), ("64Mi", 64 << 20), ("3Gi", 3 << 30)] {
            let memory: PolicyMemory = text.parse().expect("the amount was rejected");
            assert_eq!((memory, memory.to_string()), (PolicyMemory(bytes), text.to_owned()));
        }
        for text in ["", "Mi", "-1", "64MB", "1.5Gi", "99999999999Gi"] {
            assert!(text.parse::<PolicyMemory>().is_err(), "{text}");
        }
        assert_eq!(PolicyMemory::default().allow_entries(), netpol_dataplane::Capacities::default().allow);
    }
}
