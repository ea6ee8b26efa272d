//! `setup`: everything that is not cargo's to fetch.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{kubectl, run, toolchain};

/// A program that the tests or the developer need, and the Debian package it comes from.
pub(crate) struct Tool {
    /// As found on the PATH, or where it is.
    pub(crate) program: &'static str,
    /// Debian's name for it.
    pub(crate) package: &'static str,
    /// Who needs it.
    pub(crate) used_by: &'static str,
}

/// Programs of Debian that tests, demo and papers call.
pub(crate) const TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", used_by: "tests and demo: namespaces, links, routes" },
    Tool { program: "bridge", package: "iproute2", used_by: "tests of nodes behind VXLAN" },
    Tool { program: "tc", package: "iproute2", used_by: "tests of clsact" },
    Tool { program: "nft", package: "nftables", used_by: "tests of masqueraded traffic and of Services" },
    Tool { program: "iptables-nft-restore", package: "iptables", used_by: "tests of Services" },
    Tool { program: "iptables-legacy", package: "iptables", used_by: "tests of what else enforces" },
    Tool {
        program: "/usr/lib/cni/bridge",
        package: "containernetworking-plugins",
        used_by: "tests of pods as plugins wire them",
    },
    Tool {
        program: "/usr/lib/cni/ptp",
        package: "containernetworking-plugins",
        used_by: "tests of pods as plugins wire them",
    },
    Tool { program: "/usr/lib/cni/portmap", package: "containernetworking-plugins", used_by: "tests of hostPorts" },
    Tool { program: "bpftool", package: "bpftool", used_by: "docs/map-layout.md, and the tests of it" },
];

/// Programs that only `kernels` calls.
pub(crate) const KERNEL_TOOLS: &[Tool] = &[
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", used_by: "kernels: boots them" },
    Tool { program: "busybox", package: "busybox-static", used_by: "kernels: the initramfs" },
    Tool { program: "cpio", package: "cpio", used_by: "kernels: the initramfs" },
    Tool { program: "dpkg", package: "dpkg", used_by: "kernels: unpacks them" },
];

/// Installs what is missing.
pub(crate) fn run() -> Result<()> {
    packages(TOOLS)?;
    kubectl::setup()?;
    toolchain::setup()
}

/// Where maps and links are pinned.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Mounts bpffs where it is missing, as systemd does.
pub(crate) fn mount_bpffs() -> Result<()> {
    if is_bpffs_mounted() {
        return Ok(());
    }
    run::step("mounting bpffs", &mut run::command("mount", ["-t", "bpf", "bpf", BPFFS]))
}

/// Whether pins can be made.
pub(crate) fn is_bpffs_mounted() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq([BPFFS, "bpf"]))
}

/// Installs the packages of those tools that are not there.
pub(crate) fn packages(tools: &[Tool]) -> Result<()> {
    let mut missing: Vec<&str> =
        tools.iter().filter(|tool| run::find(tool.program).is_none()).map(|tool| tool.package).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !run::is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing: {}. On Debian run, as root: {line}", missing.join(", "));
    }
    run::step("updating the package lists", &mut run::command("apt-get", ["update", "-qq"]))?;
    let mut install = run::command("apt-get", ["install", "-y", "-qq", "--no-install-recommends"]);
    install.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    run::step(&format!("installing {}", missing.join(", ")), &mut install)
}
