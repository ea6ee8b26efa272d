//! Finds CNI plugins that conflict with netpol, in the configuration that the container runtime uses.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::signatures::PLUGINS;
use super::{Finding, Findings};

/// Maximum size of a configuration file in bytes. No real file is larger.
pub(crate) const MAX_SIZE: u64 = 1 << 20;

/// A configuration file: a list of plugins (`plugins`), or a single plugin (`type`). Source: the CNI specification,
/// "Network configuration format".
#[derive(Debug, Deserialize)]
struct Configuration {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    plugins: Vec<Plugin>,
}

#[derive(Debug, Deserialize)]
struct Plugin {
    #[serde(rename = "type")]
    kind: String,
}

/// Finds plugins that conflict with netpol. A missing directory is not an error and has no findings.
pub(super) fn detect(directory: &Path) -> io::Result<Findings> {
    let Some((file, types)) = used_configuration(directory)? else { return Ok(Findings::new()) };
    let advice_for = |name: &String| PLUGINS.iter().find(|(plugin, _)| plugin == name).map(|(_, advice)| *advice);
    let finding = |advice| Finding { location: file.display().to_string(), advice };
    Ok(types
        .iter()
        .filter_map(|name| advice_for(name).map(|advice| (format!("CNI plugin {name}"), finding(advice))))
        .collect())
}

/// Returns the first valid configuration file, in the order of the names, and the types of its plugins. CRI-O uses this
/// file, because it skips invalid files (source: ocicni). containerd uses it, too, unless an invalid file comes before
/// it: then pods get no network (source: go-cni).
fn used_configuration(directory: &Path) -> io::Result<Option<(PathBuf, Vec<String>)>> {
    let files = files(directory)?;
    Ok(files.into_iter().find_map(|file| Some((types(&file)?, file))).map(|(types, file)| (file, types)))
}

/// Returns the files in a CNI configuration directory, in the order in which container runtimes read them. If the
/// directory is missing, there are no files. Source: `ConfFiles` of libcni.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let is_configuration = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "conf" || end == "conflist" || end == "json") && path.is_file()
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_configuration).collect();
    files.sort();
    Ok(files)
}

/// Returns the types of the plugins in a configuration file; `None` if the file is not valid.
fn types(file: &Path) -> Option<Vec<String>> {
    let mut text = String::new();
    File::open(file).ok()?.take(MAX_SIZE).read_to_string(&mut text).ok()?;
    let configuration: Configuration = serde_json::from_str(&text).ok()?;
    let types: Vec<String> =
        configuration.plugins.into_iter().map(|plugin| plugin.kind).chain(configuration.kind).collect();
    (!types.is_empty()).then_some(types)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents of files, and the conflicting plugins that should be found.
    type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);

    const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
    const CILIUM: &str = r#"{"cniVersion":"0.3.1","name":"c","plugins":[{"type":"cilium-cni","log-file":"x"}]}"#;

    #[test]
    fn conflicting_plugins_are_found_in_the_file_that_the_runtime_uses() {
        let cases: [Case; 10] = [
            (&[], &[]),
            (&[("10-bridge.conflist", BRIDGE)], &[]),
            (&[("05-cilium.conflist", CILIUM), ("10-bridge.conflist", BRIDGE)], &["cilium-cni"]),
            (&[("05-bridge.conflist", BRIDGE), ("10-cilium.conflist", CILIUM)], &[]),
            (&[("05-cilium.conflist.bak", CILIUM), ("10-bridge.conflist", BRIDGE)], &[]),
            (&[("05-cut.conf", "{\"type\":"), ("10-cilium.conflist", CILIUM)], &["cilium-cni"]),
            (&[("05-empty.conflist", r#"{"plugins":[]}"#), ("10-cilium.conflist", CILIUM)], &["cilium-cni"]),
            (&[("10-mac.conf", r#"{"name":"m","type":"macvlan","master":"eth0"}"#)], &["macvlan"]),
            (&[("10-mac.json", r#"{"name":"m","type":"ipvlan"}"#)], &["ipvlan"]),
            (&[("a.conflist", r#"{"plugins":[{"type":"calico"},{"type":"bandwidth"}]}"#)], &["calico"]),
        ];
        for (files, plugins) in cases {
            let directory = tempfile::tempdir().unwrap();
            for (name, text) in files {
                std::fs::write(directory.path().join(name), text).unwrap();
            }
            let found = detect(directory.path()).unwrap();
            let expected: Vec<String> = plugins.iter().map(|plugin| format!("CNI plugin {plugin}")).collect();
            assert_eq!(found.keys().cloned().collect::<Vec<_>>(), expected, "{files:?}");
        }
    }

    #[test]
    fn a_finding_for_a_plugin_without_veths_has_the_file_and_the_advice() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("10-mac.conf");
        std::fs::write(&file, r#"{"type":"macvlan"}"#).unwrap();
        let found = detect(directory.path()).unwrap();
        let finding = &found["CNI plugin macvlan"];
        assert_eq!(finding.location, file.display().to_string());
        assert!(finding.advice.contains("CANNOT enforce policies"), "{}", finding.advice);
    }

    #[test]
    fn a_missing_directory_is_not_an_error() {
        assert_eq!(detect(Path::new("/nonexistent/net.d")).unwrap(), Findings::new());
    }
}
