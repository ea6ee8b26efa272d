//! What the machine must offer, checked first, so that the first thing missing is what is told.

use std::fs;

use thiserror::Error;

use crate::dataplane::KernelVersion;

/// The oldest kernel that is tested.
const OLDEST: KernelVersion = KernelVersion::new(5, 10, 0);

/// What is missing.
#[derive(Debug, Error)]
pub(super) enum MachineError {
    /// Privileges.
    #[error(
        "{verb} needs {missing}; run it as root (`sudo netpol-agent …`), or in a container with these capabilities"
    )]
    Privileges {
        /// The command.
        verb: &'static str,
        /// Names of capabilities.
        missing: String,
    },
    /// A newer kernel.
    #[error("this is Linux {0}; netpol needs 5.10 or newer, so boot a newer kernel")]
    Kernel(String),
}

/// Checks privileges and the kernel's version.
///
/// # Errors
/// Where something is missing.
pub(super) fn check(verb: &'static str) -> Result<(), MachineError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing(&status);
    if !missing.is_empty() {
        return Err(MachineError::Privileges { verb, missing: missing.join(", ") });
    }
    match KernelVersion::current() {
        Ok(version) if version < OLDEST => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            Err(MachineError::Kernel(release.trim().to_owned()))
        }
        // Where it is not known, the verifier has the last word.
        _ => Ok(()),
    }
}

/// The capabilities that `/proc/self/status` lacks. Source: `include/uapi/linux/capability.h`; `CAP_SYS_ADMIN` stands
/// for `CAP_BPF` and `CAP_PERFMON` too.
fn missing(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else { return Vec::new() };
    let has = |bit: u32| effective >> bit & 1 == 1;
    let needed = [("CAP_BPF", 39, true), ("CAP_PERFMON", 38, true), ("CAP_NET_ADMIN", 12, false)];
    let lacks = |(_, bit, admin): &(&str, u32, bool)| !has(*bit) && (!*admin || !has(21));
    needed.into_iter().filter(lacks).map(|(name, ..)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        for (mask, names) in [
            ("000001ffffffffff", &[][..]),
            ("0000000000000000", &["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]),
            ("0000000000201000", &[]),
            ("000000c000000000", &["CAP_NET_ADMIN"]),
        ] {
            assert_eq!(missing(&format!("Name:\tx\nCapEff:\t{mask}\n")), names, "{mask}");
        }
        assert!(missing("no such line").is_empty());
    }
}
