//! The input of a command: manifests from files, directories and standard input, or the objects of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netpol_files::{is_manifest, read_any, read_regular, read_stream};
use netpol_policy::manifest::{self, ManifestError, Parsed, SkipReason, Unevaluated};
use netpol_policy::model::Severity;
use netpol_policy::offline::OfflineCluster;
use netpol_policy::text::Safe;
use serde::Serialize;

use crate::args::InputOptions;
use crate::diff::AppliedByKubectl;
use crate::live::Missing;
use crate::message::message;
use crate::unevaluated;

/// The name that diagnostics about objects of a cluster have instead of a file name.
const CLUSTER: &str = "cluster";

/// The input of a command.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pub(crate) parsed: Parsed,
    /// Errors of files and directories that could not be read.
    pub(crate) unreadable: Vec<String>,
    /// Skipped files, all found in directories. If a file that is itself an argument would be skipped, it is in
    /// `unreadable` instead.
    pub(crate) skipped: Vec<SkippedFile>,
    /// Objects of a cluster that the user cannot list.
    pub(crate) missing: Vec<Missing>,
    /// Messages about those objects in `missing` that the result of the command depends on.
    pub(crate) missing_needed: Vec<String>,
    /// Whether the objects are those of a cluster, which have no file and no line.
    pub(crate) is_of_cluster: bool,
    /// The labels and annotations that `kubectl apply` has set on objects of a cluster.
    pub(crate) applied_by_kubectl: AppliedByKubectl,
    /// The namespace of objects that have none.
    default_namespace: Option<String>,
}

/// A file that was read already.
pub(crate) struct TextFile {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Whether the file itself is an argument of the command. Such a file must contain an object; a file in a directory
    /// need not.
    pub(crate) named: bool,
}

/// A file that is skipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SkippedFile {
    pub(crate) file: String,
    pub(crate) reason: SkipReason,
}

/// The field `input` in JSON: the parts of the input that the output does not cover.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InputReport<'i> {
    /// Whether every object was read in full. If not, the verdicts may be wrong.
    complete: bool,
    /// Files and directories that could not be read.
    unreadable: &'i [String],
    diagnostics: Vec<ManifestError>,
    skipped: &'i [SkippedFile],
    /// Policies of kinds that netpol does not evaluate.
    unevaluated: &'i [Unevaluated],
    /// Objects of the cluster that the user cannot list.
    #[serde(skip_serializing_if = "<[Missing]>::is_empty")]
    missing: &'i [Missing],
}

impl Input {
    /// Reads all paths. Errors are stored, and the other paths are read.
    pub(crate) fn read(options: &InputOptions) -> Self {
        Self::read_with(options, Vec::new())
    }

    /// Reads all paths. The objects of `texts` come before the objects of the paths.
    pub(crate) fn read_with(options: &InputOptions, texts: Vec<TextFile>) -> Self {
        let mut input = Self { default_namespace: options.default_namespace.clone(), ..Self::default() };
        let (mut files, mut size) = (BTreeMap::new(), 0);
        let limits = options.limits();
        for TextFile { name, bytes, named } in texts {
            size += bytes.len() as u64;
            input.add_file(&name, bytes, named);
        }
        for path in &options.paths {
            if path.as_os_str() == "-" {
                match read_stream(io::stdin().lock(), size, limits) {
                    Ok(bytes) => {
                        size += bytes.len() as u64;
                        input.add_file("<stdin>", bytes, true);
                    }
                    Err(error) => input.unreadable.push(format!("standard input {error}")),
                }
            } else {
                input.collect(path, true, &mut files, &mut BTreeSet::new());
            }
        }
        for (file, named) in files {
            // A path that is given with -f may be a pipe, for example `<(…)`. In a directory, only regular files are
            // read.
            let read = if named { read_any } else { read_regular };
            match read(&file, size, limits) {
                Ok(bytes) => {
                    size += bytes.len() as u64;
                    input.add_file(&file.display().to_string(), bytes, named);
                }
                Err(error) => input.unreadable.push(format!("{} {error}", file.display())),
            }
        }
        let diagnostics = manifest::report(&input.parsed);
        input.parsed.errors.extend(diagnostics);
        input
    }

    /// Returns the input with the objects of a cluster. `list`: these objects, as a JSON list.
    pub(crate) fn of_cluster(list: Vec<u8>) -> Self {
        let mut input = Self { is_of_cluster: true, ..Self::default() };
        input.add_file(CLUSTER, list, false);
        let diagnostics = manifest::report(&input.parsed);
        input.parsed.errors.extend(diagnostics);
        input.parsed.remove_positions();
        input
    }

    /// Prints errors and warnings about the input to standard error.
    pub(crate) fn report(&self) {
        for message in &self.unreadable {
            message!("netpol: {}", Safe(message));
        }
        for error in &self.parsed.errors {
            message!("{error}");
        }
        unevaluated::warn(&self.parsed.unevaluated);
        self.report_missing();
        if !self.is_complete() {
            message!("netpol: not all of the input was read, so the result may be wrong (exit code 3)");
        }
    }

    /// Prints messages about the objects of the cluster that the user cannot list, and that the result depends on.
    pub(crate) fn report_missing(&self) {
        for message in &self.missing_needed {
            message!("netpol: {}", Safe(message));
        }
    }

    /// Returns whether a file, a document or an object could not be read.
    pub(crate) fn is_lossy(&self) -> bool {
        !self.unreadable.is_empty() || self.parsed.invalid_documents > 0 || !self.missing_needed.is_empty()
    }

    /// Returns whether every object was read in full. If a template was skipped, returns false, because it may render
    /// to a policy.
    pub(crate) fn is_complete(&self) -> bool {
        let is_error = |error: &ManifestError| error.severity == Severity::Error;
        let has_template = self.skipped.iter().any(|skipped| skipped.reason == SkipReason::Template);
        !self.is_lossy() && !has_template && !self.parsed.errors.iter().any(is_error)
    }

    /// Returns the report for JSON.
    pub(crate) fn json(&self) -> InputReport<'_> {
        InputReport {
            complete: self.is_complete(),
            unreadable: &self.unreadable,
            diagnostics: self.errors(),
            skipped: &self.skipped,
            unevaluated: &self.parsed.unevaluated,
            missing: &self.missing,
        }
    }

    /// Returns the cluster that the objects describe. The current time decides which suspensions are in effect.
    pub(crate) fn cluster(&self, options: &InputOptions) -> OfflineCluster {
        OfflineCluster::new(&self.parsed, &options.pod_cidrs).at(jiff::Timestamp::now().into())
    }

    /// Returns the number of objects that are used.
    pub(crate) fn object_count(&self) -> usize {
        self.parsed.objects.len() + self.parsed.workloads.len()
    }

    /// Returns all errors and warnings, sorted by file and line.
    pub(crate) fn errors(&self) -> Vec<ManifestError> {
        let mut errors = self.parsed.errors.clone();
        errors.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        errors
    }

    /// Parses a file and adds its objects. `named`: as in [`TextFile`].
    fn add_file(&mut self, name: &str, bytes: Vec<u8>, named: bool) {
        match String::from_utf8(bytes) {
            Ok(text) => {
                let namespace = self.default_namespace.as_deref();
                let parsed = manifest::parse_offline_in(&text, name, namespace);
                let skip_reason = parsed.skipped;
                self.parsed.extend(parsed);
                match skip_reason {
                    Some(SkipReason::NotKubernetes) if named => {
                        self.unreadable.push(format!("{name} contains no Kubernetes object; check the path"));
                    }
                    Some(SkipReason::Template) if named => {
                        let reason = "is a template; render it first with `helm template CHART`";
                        self.unreadable.push(format!("{name} {reason}"));
                        // This error replaces the warnings about the file.
                        self.parsed.errors.retain(|error| *error.file != *name || error.severity == Severity::Error);
                    }
                    Some(reason) => self.skipped.push(SkippedFile { file: name.to_owned(), reason }),
                    None => {}
                }
            }
            Err(_) => self.unreadable.push(format!("{name} is not UTF-8 text; save it as UTF-8")),
        }
    }

    /// Finds the manifests at a path. Adds them to `files`. The value in `files` is whether the file itself is an
    /// argument of the command. `named`: whether this path is an argument. A file that is an argument can have any
    /// name. `parents`: the directories that contain the path.
    fn collect(
        &mut self,
        path: &Path,
        named: bool,
        files: &mut BTreeMap<PathBuf, bool>,
        parents: &mut BTreeSet<PathBuf>,
    ) {
        let entries = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>),
            Ok(_) => {
                if named || is_manifest(path) {
                    *files.entry(path.to_owned()).or_default() |= named;
                }
                return;
            }
            // A broken link in a directory is not an error if a file of this name would not be read.
            Err(_) if !named && !is_manifest(path) => return,
            Err(error) => Err(error),
        };
        // Symbolic links can lead to a parent directory, which must not be read again.
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::NotFound => "no such file or directory; check the path".to_owned(),
                    _ => error.to_string(),
                };
                return self.unreadable.push(format!("cannot read {}: {why}", path.display()));
            }
        };
        match entries {
            Ok(entries) if parents.insert(real.clone()) => {
                for entry in entries {
                    if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                        self.collect(&entry.path(), false, files, parents);
                    }
                }
                parents.remove(&real);
            }
            Ok(_) => {}
            Err(error) => self.unreadable.push(format!("cannot read {}: {error}", path.display())),
        }
    }
}
