//! Installs the CNI plugin `netpol-cni` on the node, as the last one in the container runtime's list of plugins.
//!
//! The list is the first valid file by name, as runtimes choose it. Only the plugin's own entry in it is added, replaced
//! or removed; the rest of the text stays as it is, so that [`uninstall`] restores it. Files are replaced atomically.

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

/// How often a file is read again because another program changed it meanwhile.
const ATTEMPTS: usize = 5;

/// What to install, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The container runtime's CNI configuration directory, for example `/etc/cni/net.d`.
    pub config_dir: PathBuf,
    /// The directory of CNI plugins, for example `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// The plugin's executable; static, because it runs with the libraries of the host: see [`bundled`].
    pub binary: PathBuf,
    /// The plugin's settings.
    pub settings: Settings,
}

/// A plugin that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The list that contains it.
    pub file: PathBuf,
    /// Whether its entry was added or replaced now.
    pub entry_written: bool,
    /// Whether its executable was copied now.
    pub binary_written: bool,
    /// Files before the list that cannot be used.
    pub skipped: Vec<Skipped>,
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub file: PathBuf,
    /// The cause.
    pub reason: String,
}

/// Why the plugin cannot be installed. Nothing was changed in the list.
#[derive(Debug, Error)]
pub enum InstallError {
    /// There is no valid configuration yet.
    #[error("no CNI configuration in {directory}{}; it is written by the network plugin", Listed(.skipped))]
    NoConfiguration {
        /// The configuration directory.
        directory: PathBuf,
        /// Invalid files.
        skipped: Vec<Skipped>,
    },
    /// The runtime uses a file with a single plugin. Its owner would write it again if it were replaced by a list,
    /// and the runtime would use that file.
    #[error("{0} configures a single plugin and cannot contain a second one; replace it by a .conflist, or use NRI")]
    SinglePlugin(PathBuf),
    /// Runtimes would reject the whole list because of a plugin that does not support its version.
    #[error("{file} has cniVersion {version}; {PLUGIN} supports {}", VERSIONS.join(", "))]
    Version {
        /// The list.
        file: PathBuf,
        /// Its version.
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

/// The configuration that the runtime uses.
struct Chosen {
    file: PathBuf,
    text: String,
    metadata: Metadata,
    skipped: Vec<Skipped>,
}

struct Listed<'a>(&'a [Skipped]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Skipped { file, reason }| write!(formatter, " ({}: {reason})", file.display()))
    }
}

impl Installation {
    /// Installs the plugin, or repairs it.
    ///
    /// # Errors
    /// If the runtime's configuration is missing or cannot have another plugin, or a file cannot be written.
    pub fn install(&self) -> Result<Installed, InstallError> {
        let entry = self.settings.entry()?;
        let mut binary_written = false;
        for _ in 0..ATTEMPTS {
            let Chosen { file, text, metadata, skipped } = choose(&self.config_dir)?;
            // Parsed before.
            let Ok(list) = ConfigList::parse(&text) else { continue };
            if let Some(version) = list.versions().find(|version| !VERSIONS.contains(version)) {
                return Err(InstallError::Version { version: version.to_owned(), file });
            }
            // First: if the list names a plugin without an executable, the runtime starts no pod.
            binary_written |= self.install_binary()?;
            let new = list.with_entry(&entry);
            let entry_written = new.is_some();
            if let Some(new) = new {
                if !is_unchanged(&file, &text) {
                    continue;
                }
                files::replace(&file, new.as_bytes(), &metadata).map_err(error("replace", &file))?;
            }
            return Ok(Installed { file, entry_written, binary_written, skipped });
        }
        Err(InstallError::Changing(self.config_dir.clone()))
    }

    /// Copies the executable if it differs. Returns whether it did.
    fn install_binary(&self) -> Result<bool, InstallError> {
        let target = self.bin_dir.join(PLUGIN);
        let content = fs::read(&self.binary).map_err(error("read", &self.binary))?;
        files::install_executable(&target, &content).map_err(error("write", &target))
    }
}

/// Removes the plugin from all lists in a directory, which then are as if it had never been there, and its executable
/// from `bin_dir`, unless a list still contains it.
///
/// Without `bin_dir` the executable remains, which does nothing by itself. CRI-O needs it until all pods that started
/// with it are removed: it removes a pod with the list of plugins that the pod was started with, and fails if one is
/// missing (`TearDownPod` and `loadNetworkFromCache` in ocicni). containerd uses the current list.
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

/// Returns the plugin's executable that belongs to this agent: the one in the same directory.
///
/// # Errors
/// If the kernel does not report the agent's path.
pub fn bundled() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(PLUGIN))
}

/// Returns the first valid configuration.
fn choose(directory: &Path) -> Result<Chosen, InstallError> {
    let mut skipped = Vec::new();
    for file in configurations(directory).map_err(error("list", directory))? {
        // A link stays one.
        let file = file.canonicalize().unwrap_or(file);
        let result = files::read(&file).map_err(|error| error.to_string()).and_then(|(text, metadata)| {
            if is_list(&file) { ConfigList::parse(&text).map(|_| ()) } else { list::check_single(&text) }?;
            Ok((text, metadata))
        });
        match result {
            Ok((text, metadata)) if is_list(&file) => return Ok(Chosen { file, text, metadata, skipped }),
            Ok(_) => return Err(InstallError::SinglePlugin(file)),
            Err(reason) => skipped.push(Skipped { file, reason }),
        }
    }
    Err(InstallError::NoConfiguration { directory: directory.to_owned(), skipped })
}

/// Removes the plugin from a configuration. Returns whether it was there.
fn remove_entry(file: &Path) -> Result<bool, String> {
    let file = file.canonicalize().map_err(|error| error.to_string())?;
    for _ in 0..ATTEMPTS {
        let (text, metadata) = files::read(&file).map_err(|error| error.to_string())?;
        if !text.contains(&format!("\"{PLUGIN}\"")) {
            return Ok(false);
        }
        let without = if is_list(&file) { ConfigList::parse(&text)?.without_entry()? } else { None };
        let Some(without) = without else {
            // For example a copy of a list that Multus has in its own configuration.
            return Err("not an entry of a list; remove it by hand".to_owned());
        };
        if is_unchanged(&file, &text) {
            let replaced = files::replace(&file, without.as_bytes(), &metadata);
            return replaced.map(|()| true).map_err(|error| error.to_string());
        }
    }
    Err("another program keeps changing the file".to_owned())
}

/// Checks that a file still has the text that was read. The change by another program after this check is lost, but
/// the time until the file is replaced is a few microseconds.
fn is_unchanged(file: &Path, text: &str) -> bool {
    files::read(file).is_ok_and(|(now, _)| now == text)
}

/// Only files with this extension are lists, for all runtimes.
fn is_list(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "conflist")
}

fn error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { operation, path, source }
}

#[cfg(test)]
mod tests;
