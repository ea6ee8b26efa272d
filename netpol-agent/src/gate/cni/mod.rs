//! Installs the CNI plugin `netpol-cni` on the node, as the last one in the container runtime's list of plugins. The
//! plugin delays the start of a pod until the pod's policies are enforced.
//!
//! Container runtimes use the first valid file of a directory, in the order of names. In this file, only the entry of
//! `netpol-cni` is added, replaced or removed. The rest of the text stays as it is, so that [`uninstall`] restores the
//! original text. Files are replaced atomically.

mod files;
mod list;
mod watch;

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use netpol_cni::{PLUGIN, Settings, SettingsError, VERSIONS};
use thiserror::Error;

use crate::conflicts::cni::files as configurations;
use list::ConfigList;

pub use watch::{report, watch};

/// Maximum number of attempts if another program changes the file at the same time.
const ATTEMPTS: usize = 5;

/// What to install, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The container runtime's CNI configuration directory, for example `/etc/cni/net.d`.
    pub config_dir: PathBuf,
    /// The directory of CNI plugins, for example `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// The plugin's executable: see [`bundled`]. It is linked statically, because it runs on the host, which may not
    /// have the libraries of the agent's image.
    pub binary: PathBuf,
    /// The plugin's settings.
    pub settings: Settings,
}

/// The result of [`Installation::install`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The list that contains the plugin.
    pub file: PathBuf,
    /// Whether the call added or replaced the plugin's entry in the list.
    pub entry_written: bool,
    /// Whether the call copied the plugin's executable.
    pub binary_written: bool,
    /// Files that come before the list in the order of names, but are not valid.
    pub skipped: Vec<Skipped>,
}

/// A configuration file that is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub file: PathBuf,
    /// The cause.
    pub reason: String,
}

/// Why the plugin cannot be installed. The list was not changed.
#[derive(Debug, Error)]
pub enum InstallError {
    /// There is no valid configuration yet.
    #[error("no CNI configuration in {directory}{}; it is written by the network plugin", SkippedFiles(.skipped))]
    NoConfiguration {
        /// The configuration directory.
        directory: PathBuf,
        /// Invalid files.
        skipped: Vec<Skipped>,
    },
    /// The runtime uses a file with a single plugin. If netpol replaced this file by a list, the network plugin that
    /// owns the file could write it again, and the runtime would use the file instead of the list.
    #[error("{0} configures a single plugin and cannot contain a second one; replace it by a .conflist, or use NRI")]
    SinglePlugin(PathBuf),
    /// The list has a version that `netpol-cni` does not support. If `netpol-cni` were in this list, runtimes would
    /// reject the whole list.
    #[error("{file} has cniVersion {version}; {PLUGIN} supports {}", VERSIONS.join(", "))]
    Version {
        /// The list.
        file: PathBuf,
        /// The version of the list.
        version: String,
    },
    /// The settings are invalid.
    #[error("invalid settings of {PLUGIN}: {0}")]
    Settings(#[from] SettingsError),
    /// Another program changes the file all the time.
    #[error("another program keeps changing {0}")]
    Changing(PathBuf),
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What failed.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The result of [`uninstall`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uninstalled {
    /// What was removed.
    pub removed: Vec<String>,
    /// What could not be removed, with the cause.
    pub remains: Vec<String>,
}

/// The configuration file that the runtime uses.
struct ChosenFile {
    file: PathBuf,
    text: String,
    metadata: Metadata,
    skipped: Vec<Skipped>,
}

struct SkippedFiles<'a>(&'a [Skipped]);

impl fmt::Display for SkippedFiles<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Skipped { file, reason }| write!(formatter, " ({}: {reason})", file.display()))
    }
}

impl Installation {
    /// Installs the plugin, or repairs its installation.
    ///
    /// # Errors
    /// If the runtime's configuration is missing or cannot have another plugin, or a file cannot be written.
    pub fn install(&self) -> Result<Installed, InstallError> {
        let entry = self.settings.entry()?;
        let mut binary_written = false;
        let mut changing = self.config_dir.clone();
        for _ in 0..ATTEMPTS {
            let ChosenFile { file, text, metadata, skipped } = choose(&self.config_dir)?;
            // `choose` has parsed the same text, so this does not fail.
            let Ok(list) = ConfigList::parse(&text) else { continue };
            if let Some(version) = list.versions().find(|version| !VERSIONS.contains(version)) {
                return Err(InstallError::Version { version: version.to_owned(), file });
            }
            // The executable comes first: if the list names a plugin without an executable, the runtime starts no pod.
            binary_written |= self.install_binary()?;
            let new = list.with_entry(&entry);
            let entry_written = new.is_some();
            if let Some(new) = new {
                if !is_unchanged(&file, &text) {
                    changing = file;
                    continue;
                }
                files::replace(&file, new.as_bytes(), &metadata).map_err(io_error("replace", &file))?;
            }
            return Ok(Installed { file, entry_written, binary_written, skipped });
        }
        Err(InstallError::Changing(changing))
    }

    /// Copies the executable if the installed one differs. Returns whether it was copied.
    fn install_binary(&self) -> Result<bool, InstallError> {
        let target = self.bin_dir.join(PLUGIN);
        let content = fs::read(&self.binary).map_err(io_error("read", &self.binary))?;
        files::install_executable(&target, &content).map_err(io_error("write", &target))
    }
}

/// Removes the plugin's entry from all lists in a directory, which restores their original text. Then removes the
/// plugin's executable from `bin_dir`, unless a list still contains the plugin.
///
/// Without `bin_dir`, the executable remains. It does nothing by itself, and CRI-O may still need it: to remove a pod,
/// CRI-O uses the list of plugins from the start of the pod, and fails if a plugin is missing (`TearDownPod` and
/// `loadNetworkFromCache` in ocicni). containerd uses the current list.
pub fn uninstall(config_dir: &Path, bin_dir: Option<&Path>) -> Uninstalled {
    let mut report = Uninstalled::default();
    let files = configurations(config_dir).unwrap_or_else(|error| {
        report.remains.push(format!("{}: {error}", config_dir.display()));
        Vec::new()
    });
    for file in &files {
        match remove_entry(file) {
            Ok(true) => report.removed.push(format!("plugin {PLUGIN} in {}", file.display())),
            Ok(false) => {}
            Err(error) => report.remains.push(format!("plugin {PLUGIN} in {}: {error}", file.display())),
        }
    }
    let Some(binary) = bin_dir.map(|directory| directory.join(PLUGIN)).filter(|_| report.remains.is_empty()) else {
        return report;
    };
    match fs::remove_file(&binary) {
        Ok(()) => report.removed.push(format!("file {}", binary.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => report.remains.push(format!("file {}: {error}", binary.display())),
    }
    report
}

/// Returns the path of the plugin's executable that belongs to this agent. It is in the directory of the agent's
/// executable.
///
/// # Errors
/// If the kernel does not report the agent's path.
pub fn bundled() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(PLUGIN))
}

/// Returns the first valid configuration file, if it is a list of plugins.
fn choose(directory: &Path) -> Result<ChosenFile, InstallError> {
    let mut skipped = Vec::new();
    for file in configurations(directory).map_err(io_error("list", directory))? {
        // If the file is a symbolic link, the link stays, and its target is replaced.
        let file = file.canonicalize().unwrap_or(file);
        let result = files::read(&file).map_err(|error| error.to_string()).and_then(|(text, metadata)| {
            if is_list(&file) { ConfigList::parse(&text).map(|_| ()) } else { list::check_single(&text) }?;
            Ok((text, metadata))
        });
        match result {
            Ok((text, metadata)) if is_list(&file) => return Ok(ChosenFile { file, text, metadata, skipped }),
            Ok(_) => return Err(InstallError::SinglePlugin(file)),
            Err(reason) => skipped.push(Skipped { file, reason }),
        }
    }
    Err(InstallError::NoConfiguration { directory: directory.to_owned(), skipped })
}

/// Removes the plugin from a configuration file. Returns whether the file contained the plugin.
fn remove_entry(file: &Path) -> Result<bool, String> {
    let file = file.canonicalize().map_err(|error| error.to_string())?;
    for _ in 0..ATTEMPTS {
        let (text, metadata) = files::read(&file).map_err(|error| error.to_string())?;
        if !text.contains(&format!("\"{PLUGIN}\"")) {
            return Ok(false);
        }
        let without = if is_list(&file) { ConfigList::parse(&text)?.without_entry()? } else { None };
        let Some(without) = without else {
            // For example, the file is the configuration of Multus, which can contain a copy of a list.
            return Err("not an entry of a list; remove it by hand".to_owned());
        };
        if is_unchanged(&file, &text) {
            let replaced = files::replace(&file, without.as_bytes(), &metadata);
            return replaced.map(|()| true).map_err(|error| error.to_string());
        }
    }
    Err("another program keeps changing the file".to_owned())
}

/// Returns whether a file still has the text that was read. If another program changes the file after this check, the
/// change is lost. This is unlikely, because the file is replaced immediately after the check.
fn is_unchanged(file: &Path, text: &str) -> bool {
    files::read(file).is_ok_and(|(now, _)| now == text)
}

/// Returns whether runtimes read a file as a list.
fn is_list(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "conflist")
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { operation, path, source }
}

#[cfg(test)]
mod tests;
