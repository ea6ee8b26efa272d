//! The BPF object file: its path, and what the kernel reports about its programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::programs::{ProgramInfo, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

/// Returns the path of the BPF object.
pub fn object() -> PathBuf {
    std::env::var_os("NETPOL_BPF_OBJECT").map_or_else(
        || {
            let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            std::env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| root.join("target"), |target| root.join(target))
                .join("bpf/netpol.o")
        },
        PathBuf::from,
    )
}

/// Returns the path of the BPF object for tests and benchmarks, which has more programs.
pub fn test_object() -> PathBuf {
    object().with_file_name("netpol-test.o")
}

/// Reads the file of an object.
///
/// # Errors
/// Returns an error if the object was not built.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("BPF object not found at {}: run `cargo xtask ebpf`", path.display()))
}

/// The name of a global variable in the BPF object. If the variable is 1, the packets and bytes of flows are counted.
pub const COUNT_TRAFFIC: &str = "COUNT_TRAFFIC";

/// Loads all programs of an object, and returns what the kernel reports about each program. `enabled` are the global
/// variables that are set to 1.
///
/// # Errors
/// Returns an error if the object does not exist, the process does not run as root, or the verifier rejects a program.
pub fn program_infos(object: &Path, enabled: &[&str]) -> Result<BTreeMap<String, ProgramInfo>> {
    let mut loader = EbpfLoader::new();
    for global in enabled {
        loader.override_global(global, &1_u32, true);
    }
    let mut bpf = loader.load(&read(object)?).context("loading the maps: run as root")?;
    bpf.programs_mut()
        .map(|(name, program)| {
            let program: &mut SchedClassifier = program.try_into()?;
            program.load().with_context(|| format!("the verifier rejected {name}"))?;
            Ok((name.to_owned(), program.info()?))
        })
        .collect()
}

/// Returns a program of a loaded object.
///
/// # Errors
/// Returns an error if the object has no such program.
pub(crate) fn classifier<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(bpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}
