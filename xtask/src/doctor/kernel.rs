//! Checks features of the running kernel. If possible, tries to use a feature instead of reading the kernel's
//! configuration.

use std::fs;
use std::process::Command;

use super::{Absence, Finding, State, optional, required};
use crate::{run, setup};

const GROUP: &str = "kernel";
const AGENT: &str = "netpol-agent";
/// The oldest kernel that `cargo xtask kernels` tests.
const OLDEST: (u32, u32) = (5, 10);

pub(super) fn check() -> Vec<Finding> {
    // `found`: what was found, or why the feature counts as missing.
    let finding = |name: &str, used_by, found, absence: Absence| Finding::new(GROUP, name, used_by, found, absence);
    // Returns a finding about a feature. `test` uses the feature in a new network namespace, which needs root.
    let tested = |name: &str, used_by, test: fn() -> Result<String, String>, fix: &str| {
        if run::is_root() {
            return finding(name, used_by, test(), required(fix));
        }
        let absence = Absence { state: State::Unknown, fix: "run doctor as root".into() };
        finding(name, used_by, Err("not tested: run doctor as root".into()), absence)
    };
    vec![
        finding("Linux 5.10 or later", AGENT, release(), required("boot a newer kernel")),
        finding(
            "BTF",
            AGENT,
            readable("/sys/kernel/btf/vmlinux"),
            required("boot a kernel with CONFIG_DEBUG_INFO_BTF=y, which distributions set"),
        ),
        finding(
            "BPF JIT",
            "speed",
            jit(),
            required("sysctl -w net.core.bpf_jit_enable=1 (or a kernel with CONFIG_BPF_JIT=y)"),
        ),
        finding("bpffs", "pinned maps and links", bpffs(), required("mount -t bpf bpf /sys/fs/bpf")),
        finding(
            "TCX",
            "attaching together with other programs (6.6 and later)",
            tcx(),
            optional("no action needed: clsact is used"),
        ),
        tested(
            "network namespaces, veth",
            "tests and demo",
            || run_in_namespace("ip link add npt-a type veth peer name npt-b"),
            "modprobe veth (CONFIG_VETH, CONFIG_NET_NS)",
        ),
        tested(
            "bridge",
            "tests and demo",
            || run_in_namespace("ip link add npt-a type bridge"),
            "modprobe bridge (CONFIG_BRIDGE)",
        ),
        tested(
            "clsact, cls_bpf",
            "attaching",
            clsact,
            "modprobe -a sch_ingress cls_bpf (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)",
        ),
        tested(
            "nftables NAT",
            "tests of masqueraded traffic",
            || run_in_namespace("nft 'add table ip t; add chain ip t c { type nat hook postrouting priority 100; }'"),
            "modprobe -a nf_tables nft_chain_nat (CONFIG_NF_TABLES, CONFIG_NFT_NAT)",
        ),
    ]
}

fn release() -> Result<String, String> {
    let release = read("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => Ok(release),
        _ => Err(release),
    }
}

fn jit() -> Result<String, String> {
    // A kernel that always compiles BPF programs shows 1.
    match read("/proc/sys/net/core/bpf_jit_enable")?.as_str() {
        "0" => Err("off".into()),
        _ => Ok("on".into()),
    }
}

fn bpffs() -> Result<String, String> {
    if setup::is_bpffs_mounted() { Ok(setup::BPFFS.into()) } else { Err(format!("not mounted at {}", setup::BPFFS)) }
}

fn tcx() -> Result<String, String> {
    let symbols = fs::read_to_string("/proc/kallsyms").map_err(|error| format!("/proc/kallsyms: {error}"))?;
    if symbols.lines().any(|line| line.split(' ').nth(2) == Some("tcx_link_attach")) {
        Ok("supported".into())
    } else {
        Err("not in this kernel".into())
    }
}

/// Creates a clsact qdisc, and finds the kernel's module `cls_bpf`, which runs eBPF programs at this qdisc.
fn clsact() -> Result<String, String> {
    let found = run_in_namespace("ip link add npt-a type veth peer name npt-b && tc qdisc add dev npt-a clsact")?;
    if read("/proc/kallsyms")?.contains("cls_bpf_classify") {
        return Ok(found);
    }
    let loaded = Command::new("modprobe").arg("cls_bpf").output().is_ok_and(|output| output.status.success());
    if loaded { Ok(found) } else { Err("clsact found, cls_bpf not found".into()) }
}

/// Runs a line of shell commands in a new network namespace, which is removed afterwards.
fn run_in_namespace(line: &str) -> Result<String, String> {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-ec", line]);
    let output = command.output().map_err(|error| format!("unshare: {error}"))?;
    if output.status.success() {
        return Ok("tested".into());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(stderr.lines().next().unwrap_or("command failed").to_owned())
}

fn readable(path: &str) -> Result<String, String> {
    fs::File::open(path).map(|_| path.to_owned()).map_err(|error| format!("{path}: {error}"))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map(|text| text.trim_end().to_owned()).map_err(|error| format!("{path}: {error}"))
}
