//! Checks capabilities and the kernel version before anything else runs, so that the user sees the missing requirement
//! and not a later, unclear error.

use std::fs;

use thiserror::Error;

use netpol_dataplane::KernelVersion;

/// Oldest tested kernel.
const OLDEST: KernelVersion = KernelVersion::new(5, 10, 0);
/// The number of this capability.
const CAP_SYS_ADMIN: u32 = 21;

/// A requirement that is not met.
#[derive(Debug, Error)]
pub(super) enum RequirementError {
    /// Capabilities are missing.
    #[error(
        "{command} needs {missing}; run it as root (`sudo netpol-agent …`), or in a container with these capabilities"
    )]
    Privileges {
        /// The command.
        command: &'static str,
        /// Names of the capabilities.
        missing: String,
    },
    /// The kernel is too old.
    #[error("this is Linux {0}; netpol needs Linux 5.10 or newer")]
    Kernel(String),
}

/// Checks capabilities and the kernel version.
///
/// # Errors
/// If a requirement is not met.
pub(super) fn check(command: &'static str) -> Result<(), RequirementError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing_capabilities(&status);
    if !missing.is_empty() {
        return Err(RequirementError::Privileges { command, missing: missing.join(", ") });
    }
    match KernelVersion::current() {
        Ok(version) if version < OLDEST => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            Err(RequirementError::Kernel(release.trim().to_owned()))
        }
        // If the version is unknown, continue: on a kernel that is too old, loading the programs fails.
        _ => Ok(()),
    }
}

/// Returns the capabilities that this process needs, but does not have. `status`: the text of `/proc/self/status`.
/// `CAP_SYS_ADMIN` includes `CAP_BPF` and `CAP_PERFMON`. Source: `include/uapi/linux/capability.h`.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else { return Vec::new() };
    let has = |bit: u32| effective >> bit & 1 == 1;
    // Name, number, and whether `CAP_SYS_ADMIN` includes the capability.
    let needed = [("CAP_BPF", 39, true), ("CAP_PERFMON", 38, true), ("CAP_NET_ADMIN", 12, false)];
    let is_missing = |(_, bit, in_sys_admin): &(&str, u32, bool)| !(has(*bit) || *in_sys_admin && has(CAP_SYS_ADMIN));
    needed.into_iter().filter(is_missing).map(|(name, ..)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        for (mask, names) in [
            ("000001ffffffffff", &[][..]),
            ("0000000000000000", &["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]),
            // `CAP_SYS_ADMIN` and `CAP_NET_ADMIN`.
            ("0000000000201000", &[]),
            // `CAP_BPF` and `CAP_PERFMON`.
            ("000000c000000000", &["CAP_NET_ADMIN"]),
        ] {
            assert_eq!(missing_capabilities(&format!("Name:\tx\nCapEff:\t{mask}\n")), names, "{mask}");
        }
        assert!(missing_capabilities("no such line").is_empty());
    }
}
