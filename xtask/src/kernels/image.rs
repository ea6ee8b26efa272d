//! The initial file system: busybox, the kernel's modules, iproute2, our programs, and the libraries all of them name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Programs, path};
use crate::kernels::suite::Kernel;
use crate::run;

/// What the test cluster and clsact need; some kernels have some of them built in.
const MODULES: &[&str] = &["veth", "bridge", "sch_ingress", "cls_bpf"];
/// Called by the smoke test.
const TOOLS: &[&str] = &["ip", "tc"];

/// Makes it, and tells where.
pub(super) fn make(kernel: &Kernel, programs: &Programs) -> Result<PathBuf> {
    let root = kernel.folder.join("image");
    let _ = fs::remove_dir_all(&root);
    for folder in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("creating {}", root.display()))?;
    }
    copy(&run::find("busybox").context("no busybox: apt-get install busybox-static")?, &root.join("bin/busybox"))?;
    copy(&programs.object, &root.join("netpol.o"))?;
    let mut dynamic = Vec::new();
    for program in [&programs.smoke, &programs.agent] {
        let name = program.file_name().context("a program has a name")?;
        let target = root.join("bin").join(name);
        // Debug information would be nine tenths of it.
        let mut strip = run::command("strip", ["-o"]);
        run::output(&format!("stripping {}", program.display()), strip.arg(&target).arg(program))?;
        dynamic.push(target);
    }
    for tool in TOOLS {
        let found = run::find(tool).with_context(|| format!("no {tool}: apt-get install iproute2"))?;
        let target = root.join("bin").join(tool);
        copy(&found, &target)?;
        dynamic.push(target);
    }
    for library in libraries(&dynamic)? {
        let target = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(target.parent().context("a library is in a folder")?)?;
        copy(&library, &target)?;
    }
    let modules = modules(kernel, &root.join("modules"))?;
    fs::write(root.join("init"), init(&modules)).context("writing init")?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    pack(&root, &kernel.folder.join("initrd"))
}

/// Runs the smoke test as process 1's child, and ends the machine.
fn init(modules: &[String]) -> String {
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

/// All libraries that the programs name, and their loader.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let said = run::output("listing libraries", run::command::<&str>("ldd", []).args(programs))?;
    // `name => /path (0x…)`, `/path/of/the/loader (0x…)`, and `/program:` above each list.
    let words = said.lines().filter(|line| line.starts_with('\t')).flat_map(str::split_whitespace);
    Ok(words.filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Copies the modules with those they depend on, and tells their file names in the order to load them.
fn modules(kernel: &Kernel, to: &Path) -> Result<Vec<String>> {
    let mut files = BTreeMap::new();
    find_modules(&kernel.modules, &mut files)?;
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin")).context("reading modules.builtin")?;
    let builtin: BTreeSet<_> = builtin.lines().filter_map(|line| name(Path::new(line))).collect();
    let mut order = Vec::new();
    for module in MODULES {
        add(module, &files, &builtin, to, &mut order)
            .with_context(|| format!("module {module} of {}", kernel.release))?;
    }
    Ok(order)
}

fn add(
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
    let file = files.get(module).context("the kernel has no such module")?;
    let target = to.join(&file_name);
    if file.extension().is_some_and(|extension| extension == "xz") {
        let file = path(file)?;
        run::output("unpacking", &mut run::command("sh", ["-c", "xz -dc \"$0\" >\"$1\"", file, path(&target)?]))?;
    } else {
        copy(file, &target)?;
    }
    for needed in dependencies(&fs::read(&target)?)? {
        add(&needed, files, builtin, to, order)?;
    }
    order.push(file_name);
    Ok(())
}

/// `depends=` of a module's `.modinfo`, where strings end in zeros.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        bail!("it does not tell what it depends on");
    };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    Ok(value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

/// Modules below a folder, by name.
fn find_modules(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), found)?;
        } else if let Some(name) = name(&entry.path()) {
            found.insert(name, entry.path());
        }
    }
    Ok(())
}

/// What `lsmod` calls a module's file.
fn name(file: &Path) -> Option<String> {
    let file = file.file_name()?.to_str()?;
    Some(file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?.replace('-', "_"))
}

fn pack(root: &Path, to: &Path) -> Result<PathBuf> {
    let line = "cd \"$0\" && find . | cpio --quiet -o -H newc >\"$1\"";
    run::output("packing the initial file system", &mut run::command("sh", ["-c", line, path(root)?, path(to)?]))?;
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_tells_what_it_depends_on() {
        assert_eq!(dependencies(b"x\0alias=y\0depends=stp,llc\0name=bridge\0").unwrap(), ["stp", "llc"]);
        assert_eq!(dependencies(b"x\0depends=\0name=llc\0").unwrap(), [""; 0]);
        assert!(dependencies(b"not a module").is_err());
    }

    #[test]
    fn modules_are_named_as_lsmod_names_them() {
        assert_eq!(name(Path::new("/a/sch-ingress.ko.xz")).as_deref(), Some("sch_ingress"));
        assert_eq!(name(Path::new("kernel/net/llc.ko")).as_deref(), Some("llc"));
        assert_eq!(name(Path::new("modules.dep")), None);
    }
}
