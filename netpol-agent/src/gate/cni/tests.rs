//! Tests the installation of the CNI plugin `netpol-cni`, in temporary directories. An installation copies the plugin's
//! executable, and adds an entry for the plugin to the runtime's list of plugins (a `.conflist` file).

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

/// A list of plugins, as a network plugin writes it.
const BRIDGE: &str =
    "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"n\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";

/// The directories of the container runtime on a node, and what netpol installs there.
struct Node {
    root: TempDir,
    installation: Installation,
}

impl Node {
    /// Creates a node with these CNI configuration files (name and text).
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path_of = |name: &str| root.path().canonicalize().unwrap().join(name);
        let installation = Installation {
            config_dir: path_of("net.d"),
            bin_dir: path_of("bin"),
            binary: path_of("bundled"),
            settings: Settings::default(),
        };
        fs::create_dir(&installation.config_dir).unwrap();
        fs::create_dir(&installation.bin_dir).unwrap();
        fs::write(&installation.binary, "the plugin").unwrap();
        let node = Self { root, installation };
        for (name, text) in files {
            node.write(name, text);
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.installation.config_dir.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Returns whether the file contains the entry of `netpol-cni`.
    fn has_entry(&self, name: &str) -> bool {
        self.read(name).contains(&self.installation.settings.entry().unwrap())
    }

    fn installed_executable(&self) -> PathBuf {
        self.installation.bin_dir.join(PLUGIN)
    }

    /// Installs the plugin. Checks which list then contains the plugin, and whether the entry and the executable were
    /// written. Returns the invalid files.
    #[track_caller]
    fn assert_installs(&self, file: &str, entry_written: bool, binary_written: bool) -> Vec<Skipped> {
        let installed = self.installation.install().unwrap();
        let state = (installed.file.clone(), installed.entry_written, installed.binary_written);
        assert_eq!(state, (self.path(file), entry_written, binary_written));
        assert!(self.has_entry(file));
        installed.skipped
    }

    #[track_caller]
    fn assert_fails_with(&self, words: &str) {
        let error = self.installation.install().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }

    fn uninstall(&self) -> Uninstalled {
        uninstall(&self.installation.config_dir, Some(&self.installation.bin_dir))
    }

    /// Returns the names of all files in the configuration directory, including hidden files.
    fn file_names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.installation.config_dir).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_plugin_is_installed_once_and_uninstalled_without_a_trace() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE), ("20-other.conflist", BRIDGE)]);
    node.assert_installs("10-bridge.conflist", true, true);
    node.assert_installs("10-bridge.conflist", false, false);
    assert_eq!(node.read("20-other.conflist"), BRIDGE, "runtimes use only the first file");
    assert_eq!(fs::read(node.installed_executable()).unwrap(), b"the plugin");
    assert_eq!(fs::metadata(node.installed_executable()).unwrap().mode() & 0o777, 0o755);

    let report = node.uninstall();
    // The entry and the executable are removed, and nothing remains.
    assert_eq!((report.removed.len(), report.remains), (2, Vec::new()));
    assert_eq!(node.read("10-bridge.conflist"), BRIDGE);
    assert_eq!(node.file_names(), ["10-bridge.conflist", "20-other.conflist"]);
    assert!(!node.installed_executable().exists());
    assert_eq!(node.uninstall(), Uninstalled::default());
}

#[test]
fn the_plugin_is_installed_again_after_files_are_changed_added_or_removed() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    node.assert_installs("10-bridge.conflist", true, true);
    let rewritten = BRIDGE.replace("bridge", "ptp");
    node.write("10-bridge.conflist", &rewritten);
    node.assert_installs("10-bridge.conflist", true, false);
    node.write("05-first.conflist", BRIDGE);
    node.assert_installs("05-first.conflist", true, false);
    fs::remove_file(node.installed_executable()).unwrap();
    node.assert_installs("05-first.conflist", false, true);
    fs::set_permissions(node.installed_executable(), fs::Permissions::from_mode(0o644)).unwrap();
    node.assert_installs("05-first.conflist", false, true);
    // `10-bridge.conflist` still has the entry, although `05-first.conflist` is used now. The uninstallation removes
    // the entry from both files, but keeps other changes.
    node.write("10-bridge.conflist", &node.read("10-bridge.conflist").replace("\"n\"", "\"renamed\""));
    assert_eq!(node.uninstall().remains, Vec::<String>::new());
    assert_eq!(node.read("05-first.conflist"), BRIDGE);
    assert_eq!(node.read("10-bridge.conflist"), rewritten.replace("\"n\"", "\"renamed\""));
}

#[test]
fn an_entry_with_other_settings_and_an_executable_of_another_version_are_replaced() {
    let mut node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    node.assert_installs("10-bridge.conflist", true, true);
    node.installation.settings.timeout_seconds = 20;
    fs::write(&node.installation.binary, "the next version").unwrap();
    node.assert_installs("10-bridge.conflist", true, true);
    assert_eq!(fs::read(node.installed_executable()).unwrap(), b"the next version");
    node.uninstall();
    assert_eq!(node.read("10-bridge.conflist"), BRIDGE);
}

#[test]
fn symlinks_permissions_and_owners_are_kept() {
    let node = Node::new(&[]);
    let target = node.root.path().canonicalize().unwrap().join("real.conflist");
    fs::write(&target, BRIDGE).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    symlink(&target, node.path("10-link.conflist")).unwrap();
    let before = fs::metadata(&target).unwrap();
    assert_eq!(node.installation.install().unwrap().file, target);
    let after = fs::metadata(&target).unwrap();
    assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
    assert!(node.path("10-link.conflist").is_symlink() && node.has_entry("10-link.conflist"));
    node.uninstall();
    assert_eq!(node.read("10-link.conflist"), BRIDGE);
    assert!(node.path("10-link.conflist").is_symlink());
}

#[test]
fn invalid_files_are_reported_and_not_touched() {
    // A runtime reads a `.conf` file as the configuration of a single plugin, so a list in it is invalid.
    let node =
        Node::new(&[("05-cut.conflist", "{\"plugins\":"), ("06-list.conf", BRIDGE), ("10-bridge.conflist", BRIDGE)]);
    let skipped = node.assert_installs("10-bridge.conflist", true, true);
    let files: Vec<_> = skipped.into_iter().map(|skipped| skipped.file).collect();
    assert_eq!(files, [node.path("05-cut.conflist"), node.path("06-list.conf")]);
    assert_eq!((node.read("05-cut.conflist").as_str(), node.read("06-list.conf").as_str()), ("{\"plugins\":", BRIDGE));

    fs::remove_file(node.path("10-bridge.conflist")).unwrap();
    node.assert_fails_with("no CNI configuration");
    node.assert_fails_with("05-cut.conflist: EOF");
    node.write("05-cut.conflist", &format!("{{\"plugins\":[{{\"type\":\"{PLUGIN}\""));
    let report = node.uninstall();
    assert_eq!((report.removed.len(), report.remains.len()), (0, 1), "{report:?}");
    assert!(node.installed_executable().exists(), "a list may still name the executable");
}

#[test]
fn an_entry_that_multus_copied_is_reported_and_not_removed() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    node.assert_installs("10-bridge.conflist", true, true);
    let delegates = format!(r#"{{"type":"multus","name":"m","delegates":[{}]}}"#, node.read("10-bridge.conflist"));
    node.write("00-multus.conf", &delegates);
    let report = node.uninstall();
    assert_eq!((report.removed.len(), report.remains.len()), (1, 1), "{report:?}");
    assert!(report.remains[0].contains("00-multus.conf: not an entry"), "{report:?}");
    assert_eq!((node.read("10-bridge.conflist"), node.read("00-multus.conf")), (BRIDGE.to_owned(), delegates));
    assert!(node.installed_executable().exists());
}

#[test]
fn configurations_that_cannot_contain_the_plugin_are_errors() {
    let single = r#"{"cniVersion":"1.0.0","name":"n","type":"ptp"}"#;
    let node = Node::new(&[("10-ptp.conf", single), ("20-bridge.conflist", BRIDGE)]);
    node.assert_fails_with("10-ptp.conf configures a single plugin");
    assert_eq!((node.read("10-ptp.conf").as_str(), node.read("20-bridge.conflist").as_str()), (single, BRIDGE));
    assert!(!node.installed_executable().exists());

    for version in ["\"0.2.0\"", "\"\"", "\"2.0.0\""] {
        let node = Node::new(&[("10-bridge.conflist", &BRIDGE.replace("\"1.0.0\"", version))]);
        node.assert_fails_with("supports 0.3.0");
        assert!(!node.read("10-bridge.conflist").contains(PLUGIN) && !node.installed_executable().exists());
    }
    Node::new(&[]).assert_fails_with("no CNI configuration");
    let mut node = Node::new(&[]);
    node.installation.config_dir = node.path("missing");
    node.assert_fails_with("no CNI configuration");
}

#[test]
fn a_missing_executable_or_directory_is_an_error_and_the_list_stays_unchanged() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    fs::remove_file(&node.installation.binary).unwrap();
    node.assert_fails_with("cannot read");
    fs::write(&node.installation.binary, "the plugin").unwrap();
    fs::remove_dir(&node.installation.bin_dir).unwrap();
    node.assert_fails_with("cannot write");
    assert_eq!(node.read("10-bridge.conflist"), BRIDGE);
    // The test may run as root, which can also write into read-only directories. So a directory with the name of the
    // temporary file makes the write fail.
    fs::create_dir(&node.installation.bin_dir).unwrap();
    fs::create_dir_all(node.path(&format!(".{PLUGIN}.draft")).join("x")).unwrap();
    node.assert_fails_with("cannot replace");
    assert_eq!(node.read("10-bridge.conflist"), BRIDGE);
}

#[tokio::test]
async fn a_watch_repairs_the_installation_after_other_programs_change_files() {
    let node = Node::new(&[]);
    let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let watching = tokio::spawn(watch(node.installation.clone(), move |result| {
        let _ = sender.send(result.as_ref().map(|installed| installed.file.clone()).map_err(ToString::to_string));
    }));
    let mut next_report = async || tokio::time::timeout(Duration::from_secs(8), reports.recv()).await.unwrap().unwrap();
    assert!(next_report().await.unwrap_err().contains("no CNI configuration"));
    let written = Instant::now();
    node.write("10-bridge.conflist", BRIDGE);
    assert_eq!(next_report().await, Ok(node.path("10-bridge.conflist")));
    // Without inotify, the watch would find the change only at its next check, 10 s after the first one.
    assert!(written.elapsed() < Duration::from_secs(5), "the change must be found by inotify: {:?}", written.elapsed());

    node.write("10-bridge.conflist", BRIDGE);
    next_report().await.unwrap();
    assert!(node.has_entry("10-bridge.conflist"));
    fs::remove_file(node.installed_executable()).unwrap();
    next_report().await.unwrap();
    assert!(node.installed_executable().exists());
    node.write("05-new.conflist", BRIDGE);
    assert_eq!(next_report().await, Ok(node.path("05-new.conflist")));
    // The watch does not report a change that it writes itself.
    assert!(tokio::time::timeout(Duration::from_millis(300), reports.recv()).await.is_err());
    watching.abort();
}
