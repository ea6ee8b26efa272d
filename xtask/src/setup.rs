//! `cargo xtask setup`: installs everything that cargo does not download.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{kubectl, prometheus, run, toolchain};

/// A program that tests or developers need, and its Debian package.
pub(crate) struct Tool {
    /// The name of the program on the PATH, or its path.
    pub(crate) program: &'static str,
    /// The Debian package that has the program.
    pub(crate) package: &'static str,
    /// What needs the program.
    pub(crate) used_by: &'static str,
}

/// Programs that the tests and the demo run, or that the docs use.
pub(crate) const TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", used_by: "tests and demo: namespaces, links, routes" },
    Tool { program: "bridge", package: "iproute2", used_by: "tests of VXLAN overlays" },
    Tool { program: "tc", package: "iproute2", used_by: "tests of clsact" },
    Tool { program: "nft", package: "nftables", used_by: "tests of masqueraded traffic and of Services" },
    Tool { program: "iptables-nft-restore", package: "iptables", used_by: "tests of Services" },
    Tool { program: "iptables-legacy", package: "iptables", used_by: "tests of conflicts with other policy engines" },
    Tool { program: "/usr/lib/cni/bridge", package: "containernetworking-plugins", used_by: "tests of CNI plugins" },
    Tool { program: "/usr/lib/cni/ptp", package: "containernetworking-plugins", used_by: "tests of CNI plugins" },
    Tool { program: "/usr/lib/cni/portmap", package: "containernetworking-plugins", used_by: "tests of hostPorts" },
    Tool { program: "bpftool", package: "bpftool", used_by: "docs/map-layout.md and its tests" },
];

/// Programs that only `cargo xtask kernels` needs. That command installs them.
pub(crate) const KERNEL_TOOLS: &[Tool] = &[
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", used_by: "kernels: virtual machines" },
    Tool { program: "busybox", package: "busybox-static", used_by: "kernels: the initramfs" },
    Tool { program: "cpio", package: "cpio", used_by: "kernels: the initramfs" },
    Tool { program: "dpkg", package: "dpkg", used_by: "kernels: unpacking packages" },
];

/// Installs all missing tools, except `KERNEL_TOOLS`.
pub(crate) fn run() -> Result<()> {
    install_packages(TOOLS)?;
    kubectl::setup()?;
    prometheus::setup()?;
    toolchain::setup()
}

/// Mount point of bpffs.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Mounts bpffs if it is not mounted. (On a machine with systemd, systemd mounts it at boot.)
pub(crate) fn mount_bpffs() -> Result<()> {
    if is_bpffs_mounted() {
        return Ok(());
    }
    run::step("mounting bpffs", &mut run::command("mount", ["-t", "bpf", "bpf", BPFFS]))
}

/// Returns whether bpffs is mounted.
pub(crate) fn is_bpffs_mounted() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq([BPFFS, "bpf"]))
}

/// Installs the packages of missing tools.
pub(crate) fn install_packages(tools: &[Tool]) -> Result<()> {
    let mut missing: Vec<&str> =
        tools.iter().filter(|tool| run::find(tool.program).is_none()).map(|tool| tool.package).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !run::is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing packages: {}. On Debian, run as root: {command}", missing.join(", "));
    }
    run::step("updating the package lists", &mut run::command("apt-get", ["update", "-qq"]))?;
    let mut install = run::command("apt-get", ["install", "-y", "-qq", "--no-install-recommends"]);
    install.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    run::step(&format!("installing {}", missing.join(", ")), &mut install)
}
