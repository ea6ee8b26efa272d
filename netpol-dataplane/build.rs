//! Embeds the BPF object, if it exists. Without it, `cargo build` works, and the agent reports which command to run.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(netpol_bpf_object)");
    println!("cargo::rerun-if-env-changed=NETPOL_BPF_OBJECT");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    let object = object_path();
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("netpol.o");
    match fs::copy(&object, &out) {
        Ok(_) => println!("cargo::rustc-cfg=netpol_bpf_object"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && env::var_os("NETPOL_BPF_OBJECT").is_none() => {}
        Err(error) => panic!("cannot read the BPF object {}: {error}", object.display()),
    }
}

/// Returns the path of the object: `NETPOL_BPF_OBJECT`, or the path to which `cargo xtask ebpf` writes it.
fn object_path() -> PathBuf {
    if let Some(path) = env::var_os("NETPOL_BPF_OBJECT") {
        return path.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("netpol-dataplane is a workspace member");
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), |target| workspace.join(target));
    target.join("bpf/netpol.o")
}
