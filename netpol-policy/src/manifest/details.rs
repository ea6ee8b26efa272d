//! The parts of objects that only `netpol lint` uses. The model does not have them, because the agent does not need
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::path::FieldPath;
use super::split;
use super::tree::{self, Lines, Tree};
use crate::model::{Labels, NamespaceName, PodKey, PolicyKey, Protocol};

/// The annotation that suppresses findings, on a policy or on its namespace.
pub const IGNORE_ANNOTATION: &str = "netpol.io/lint-ignore";

/// The details of all objects of the input. Only [`super::parse_offline`] returns them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The text of each policy.
    pub policies: BTreeMap<PolicyKey, PolicySource>,
    /// The values of [`IGNORE_ANNOTATION`] on namespaces.
    pub ignores: BTreeMap<NamespaceName, String>,
    /// Details of pods; those of a workload have the key [`PodKey::of_workload`].
    pub pods: BTreeMap<PodKey, PodDetails>,
    /// Service accounts with `automountServiceAccountToken: false`.
    pub without_token: BTreeSet<(NamespaceName, Arc<str>)>,
    /// Labels in custom resources.
    pub custom_resource_labels: Vec<CustomResourceLabels>,
}

/// Labels in a custom resource. A controller may create pods with these labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomResourceLabels {
    /// The namespace of the object.
    pub namespace: NamespaceName,
    /// `kind` of the object.
    pub kind: Arc<str>,
    /// The labels.
    pub labels: Labels,
}

/// The containers and the service account of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDetails {
    /// The ports that containers declare.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// `serviceAccountName`, if it is set and not `default`.
    pub service_account: Option<Arc<str>>,
    /// `automountServiceAccountToken`.
    pub automount: Option<bool>,
}

/// The text of a file, with an index of its lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileText {
    text: String,
    /// The byte position after each line.
    ends: Vec<usize>,
}

impl FileText {
    pub(super) fn new(text: &str) -> Self {
        let ends = text.split_inclusive('\n').scan(0, |end, line| {
            *end += line.len();
            Some(*end)
        });
        Self { text: text.to_owned(), ends: ends.collect() }
    }

    /// Returns the number of lines.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Returns lines without their line breaks. Indices are from 0; lines that do not exist are omitted.
    pub fn lines(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = &str> {
        let range = range.start..range.end.min(self.count());
        range.map(|index| {
            let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
            self.text[start..self.ends[index]].trim_end_matches('\n')
        })
    }

    /// Returns whether the last line has a line break.
    pub fn ends_with_line_break(&self) -> bool {
        self.text.ends_with('\n')
    }
}

/// A policy as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySource {
    /// The file name that was passed to the parser.
    pub file: Arc<str>,
    /// The text of the whole file.
    pub text: Arc<FileText>,
    /// The policy, with its invalid parts.
    pub value: Value,
    /// The lines of the object in the file, from 0.
    pub range: std::ops::Range<usize>,
    /// The column of the `-` if the object is an item of a list.
    pub dash: Option<usize>,
    /// The line numbers of the fields in the file.
    lines: Lines,
}

impl PolicySource {
    /// Creates the source of a policy. `root`: the path of the policy in the document.
    pub(super) fn new(file: &Arc<str>, text: &Arc<FileText>, value: Value, tree: &Tree, root: &FieldPath) -> Self {
        let (lines, range) = (tree.lines.nearest(root).clone(), tree.range.clone());
        let mut source = Self { file: file.clone(), text: text.clone(), value, range, dash: None, lines };
        if !root.0.is_empty() {
            source.range.start = source.lines.line() - 1;
            source.limit_to_item();
        }
        source
    }

    /// Limits the range to the policy, an item of a YAML list. If the list is not in block style, sets an empty range,
    /// because the item cannot be edited by lines.
    fn limit_to_item(&mut self) {
        let indent = |line: &str| line.len() - line.trim_start().len();
        let mut lines = self.text.lines(self.range.clone());
        let Some(first) = lines.next().filter(|line| line.trim_start().starts_with("- ")) else {
            self.range = 0..0;
            return;
        };
        let dash = indent(first);
        let others = lines.take_while(|line| line.trim().is_empty() || indent(line) > dash).count();
        self.range.end = self.range.start + 1 + others;
        self.dash = Some(dash);
    }

    /// Returns the line number (from 1) of a field, or of the nearest field around it.
    pub fn line(&self, field: &str) -> usize {
        self.lines.of_text(field)
    }

    /// Returns the value of [`IGNORE_ANNOTATION`].
    pub fn ignores(&self) -> Option<&str> {
        self.value["metadata"]["annotations"][IGNORE_ANNOTATION].as_str()
    }
}

impl PodDetails {
    /// Reads the details of a pod or of a workload's pod template.
    pub(super) fn of(spec: &core::PodSpec) -> Self {
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        let port = |port: &core::ContainerPort| {
            let protocol = Protocol::from_name(port.protocol.as_deref().unwrap_or("TCP"))?;
            Some((protocol, u16::try_from(port.container_port).ok()?))
        };
        let service_account = spec.service_account_name.as_deref().filter(|name| !["", "default"].contains(name));
        Self {
            ports: ports.filter_map(port).collect(),
            service_account: service_account.map(Into::into),
            automount: spec.automount_service_account_token,
        }
    }
}

impl Details {
    pub(super) fn extend(&mut self, other: Self) {
        let Self { policies, ignores, pods, without_token, custom_resource_labels } = other;
        self.policies.extend(policies);
        self.ignores.extend(ignores);
        self.pods.extend(pods);
        self.without_token.extend(without_token);
        self.custom_resource_labels.extend(custom_resource_labels);
    }
}

/// Parses the only document of a text; `None` if the text is not valid or does not have exactly one document.
pub(crate) fn value_of(text: &str) -> Option<(Value, Lines)> {
    let mut documents = split::documents(text).into_iter();
    let (document, None) = (documents.next()?, documents.next()) else { return None };
    let mut trees = tree::read(&document, &mut 0).ok()?.into_iter();
    let (tree, None) = (trees.next()?, trees.next()) else { return None };
    Some((tree.value, tree.lines))
}
