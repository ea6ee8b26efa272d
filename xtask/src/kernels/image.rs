//! Builds the initramfs of the virtual machine in which `cargo xtask kernels` runs the smoke test. The initramfs
//! contains busybox, kernel modules, the smoke test, the agent, its BPF object, `ip`, `tc`, and the libraries of these
//! executables.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Programs, path_str};
use crate::kernels::suite::Kernel;
use crate::run;

/// Kernel modules that the smoke test needs: for the veths and bridge of its cluster, and to attach programs with
/// clsact. Some of these modules are built into some kernels.
const MODULES: &[&str] = &["veth", "bridge", "sch_ingress", "cls_bpf"];
/// Tools that the smoke test runs.
const TOOLS: &[&str] = &["ip", "tc"];

/// Builds the initramfs and returns its path.
pub(super) fn build(kernel: &Kernel, programs: &Programs) -> Result<PathBuf> {
    let root = kernel.folder.join("image");
    let _ = fs::remove_dir_all(&root);
    for folder in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("creating {}", root.display()))?;
    }
    copy(
        &run::find("busybox").context("busybox not found: run apt-get install busybox-static")?,
        &root.join("bin/busybox"),
    )?;
    copy(&programs.object, &root.join("netpol.o"))?;
    // The programs that are copied together with their libraries.
    let mut dynamic = Vec::new();
    for program in [&programs.smoke, &programs.agent] {
        let name = program.file_name().context("the program has no file name")?;
        let target = root.join("bin").join(name);
        // `strip` removes the debug information, which is nine tenths of the file.
        let mut strip = run::command("strip", ["-o"]);
        run::output(&format!("stripping {}", program.display()), strip.arg(&target).arg(program))?;
        dynamic.push(target);
    }
    for tool in TOOLS {
        let found = run::find(tool).with_context(|| format!("{tool} not found: run apt-get install iproute2"))?;
        let target = root.join("bin").join(tool);
        copy(&found, &target)?;
        dynamic.push(target);
    }
    for library in libraries(&dynamic)? {
        let target = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(target.parent().context("the library's path has no folder")?)?;
        copy(&library, &target)?;
    }
    let modules = copy_modules(kernel, &root.join("modules"))?;
    fs::write(root.join("init"), init_script(&modules)).context("writing init")?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    pack(&root, &kernel.folder.join("initrd"))
}

/// Returns the script for process 1: runs the smoke test, then stops the machine.
fn init_script(modules: &[String]) -> String {
    let load = modules.join(" ");
    format!(
        "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs tmp /tmp
$b mount -t bpf bpf /sys/fs/bpf
for module in {load}; do $b insmod /modules/$module; done
export PATH=/bin NETPOL_AGENT=/bin/netpol-agent NETPOL_BPF_OBJECT=/netpol.o
ip link set lo up
netpol-smoke --alone
echo \"smoke ended with $?\"
$b reboot -f
"
    )
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Returns all libraries that the programs link to, and their loader.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let output = run::output("listing libraries", run::command::<&str>("ldd", []).args(programs))?;
    // ldd prints `name => /path (0x…)` and `/path/of/the/loader (0x…)`, and `/program:` above each list.
    let words = output.lines().filter(|line| line.starts_with('\t')).flat_map(str::split_whitespace);
    Ok(words.filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Copies [`MODULES`] and their dependencies to `to`. Returns their file names in the order in which they must be
/// loaded.
fn copy_modules(kernel: &Kernel, to: &Path) -> Result<Vec<String>> {
    let mut files = BTreeMap::new();
    find_modules(&kernel.modules, &mut files)?;
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin")).context("reading modules.builtin")?;
    let builtin: BTreeSet<_> = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
    let mut order = Vec::new();
    for module in MODULES {
        add_module(module, &files, &builtin, to, &mut order)
            .with_context(|| format!("module {module} of {}", kernel.release))?;
    }
    Ok(order)
}

/// Copies a module and its dependencies, unless they are built in. Appends their file names to `order`.
fn add_module(
    module: &str,
    files: &BTreeMap<String, PathBuf>,
    builtin: &BTreeSet<String>,
    to: &Path,
    order: &mut Vec<String>,
) -> Result<()> {
    let file_name = format!("{module}.ko");
    if builtin.contains(module) || order.contains(&file_name) {
        return Ok(());
    }
    let file = files.get(module).context("the kernel does not have this module")?;
    let target = to.join(&file_name);
    if file.extension().is_some_and(|extension| extension == "xz") {
        let file = path_str(file)?;
        run::output("unpacking", &mut run::command("sh", ["-c", "xz -dc \"$0\" >\"$1\"", file, path_str(&target)?]))?;
    } else {
        copy(file, &target)?;
    }
    for needed in dependencies(&fs::read(&target)?)? {
        add_module(&needed, files, builtin, to, order)?;
    }
    order.push(file_name);
    Ok(())
}

/// Returns the names of the modules that a module needs. They are in the string `depends=` of its section `.modinfo`,
/// in which each string ends with a zero byte.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        bail!("its .modinfo has no depends= entry");
    };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    Ok(value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

/// Adds the files of all modules below a folder to `found`. The key is the name of the module.
fn find_modules(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), found)?;
        } else if let Some(name) = module_name(&entry.path()) {
            found.insert(name, entry.path());
        }
    }
    Ok(())
}

/// Returns the name of the module in a file, as `lsmod` prints it.
fn module_name(file: &Path) -> Option<String> {
    let file = file.file_name()?.to_str()?;
    Some(file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?.replace('-', "_"))
}

/// Writes the initramfs: a cpio archive of the folder `root`. Returns its path, `to`.
fn pack(root: &Path, to: &Path) -> Result<PathBuf> {
    let script = "cd \"$0\" && find . | cpio --quiet -o -H newc >\"$1\"";
    run::output("packing the initramfs", &mut run::command("sh", ["-c", script, path_str(root)?, path_str(to)?]))?;
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(dependencies(b"x\0alias=y\0depends=stp,llc\0name=bridge\0").unwrap(), ["stp", "llc"]);
        assert_eq!(dependencies(b"x\0depends=\0name=llc\0").unwrap(), [""; 0]);
        assert!(dependencies(b"not a module").is_err());
    }

    #[test]
    fn modules_are_named_as_lsmod_names_them() {
        assert_eq!(module_name(Path::new("/a/sch-ingress.ko.xz")).as_deref(), Some("sch_ingress"));
        assert_eq!(module_name(Path::new("kernel/net/llc.ko")).as_deref(), Some("llc"));
        assert_eq!(module_name(Path::new("modules.dep")), None);
    }
}
