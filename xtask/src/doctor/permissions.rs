//! Checks permissions of this process.

use std::fs;

use super::{Finding, required};
use crate::run;

const GROUP: &str = "permissions";
/// The fix for a missing permission.
const AS_ROOT: &str = "run as root: sudo -E env \"PATH=$PATH\" cargo xtask …";

/// Capabilities: their names, their bits in `CapEff` (from linux/capability.h), and what needs them.
const CAPABILITIES: [(&str, u32, &str); 3] = [
    ("CAP_NET_ADMIN", 12, "creating links, attaching programs"),
    ("CAP_SYS_ADMIN", 21, "network namespaces, and mounting bpffs"),
    ("CAP_BPF", 39, "loading programs and maps"),
];

pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![Finding::new(
        GROUP,
        "root",
        "test, demo, bench",
        if run::is_root() { Ok("yes".into()) } else { Err("no".into()) },
        required(AS_ROOT),
    )];
    let capabilities = effective_capabilities();
    for (name, bit, used_by) in CAPABILITIES {
        let found = match capabilities {
            Ok(mask) if mask >> bit & 1 == 1 => Ok("effective".into()),
            Ok(mask) => Err(format!("not among the effective capabilities {mask:x}")),
            Err(ref reason) => Err(reason.clone()),
        };
        findings.push(Finding::new(GROUP, name, used_by, found, required(AS_ROOT)));
    }
    findings.push(Finding::new(
        GROUP,
        "locked memory",
        "maps, before Linux 5.11",
        memlock(),
        required("ulimit -l unlimited"),
    ));
    findings
}

fn effective_capabilities() -> Result<u64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).ok_or("/proc/self/status has no CapEff")?;
    u64::from_str_radix(line.trim(), 16).map_err(|error| format!("CapEff {line:?}: {error}"))
}

/// Checks the limit of locked memory (`RLIMIT_MEMLOCK`). Before Linux 5.11, BPF maps count against this limit, but an
/// agent that runs as root raises the limit. From Linux 5.11 on, maps count against the memory limit of the cgroup.
fn memlock() -> Result<String, String> {
    let limits = fs::read_to_string("/proc/self/limits").map_err(|error| format!("/proc/self/limits: {error}"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap_or_default();
    let limit = line.split_whitespace().next().unwrap_or("unknown");
    let counted_by_cgroup = fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| {
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(5), Some(11))
    });
    if counted_by_cgroup {
        Ok("counted by cgroup".into())
    } else if limit == "unlimited" {
        Ok("unlimited".into())
    } else if run::is_root() {
        Ok(format!("{limit}; root can raise it"))
    } else {
        Err(format!("limited to {limit} bytes"))
    }
}
