//! Field paths, such as `spec.ingress[0].from[1]`.

use std::fmt;

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// A key of a map.
    Key(String),
    /// An index of a list.
    Index(usize),
}

impl Step {
    /// Removes this step from the start of `text`, which is a field path or the rest of a field path. Returns what
    /// follows the step, or `None` if `text` starts with another step.
    pub(super) fn strip<'t>(&self, text: &'t str) -> Option<&'t str> {
        let rest = match self {
            Self::Key(key) => text.strip_prefix('.').unwrap_or(text).strip_prefix(key.as_str())?,
            Self::Index(index) => text.strip_prefix(&format!("[{index}]"))?,
        };
        (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
    }
}

/// A path that starts at an object's root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FieldPath(pub(crate) Vec<Step>);

impl FieldPath {
    /// Parses a path in the form that `Display` writes. No key of the path may contain `.` or `[`.
    pub(crate) fn parse(text: &str) -> Self {
        let steps =
            text.split(['.', '[']).map(|step| match step.strip_suffix(']').and_then(|index| index.parse().ok()) {
                Some(index) => Step::Index(index),
                None => Step::Key(step.to_owned()),
            });
        Self(steps.collect())
    }

    /// Returns the path of the field `key` below this path.
    pub(crate) fn key(&self, key: &str) -> Self {
        self.with_step(Step::Key(key.to_owned()))
    }

    /// Returns the path of the list item `index` below this path.
    pub(crate) fn index(&self, index: usize) -> Self {
        self.with_step(Step::Index(index))
    }

    fn with_step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// Returns the steps of this path after `root`; `None` if this path does not start with `root`.
    pub(super) fn relative_to(&self, root: &Self) -> Option<Self> {
        self.0.strip_prefix(root.0.as_slice()).map(|steps| Self(steps.to_vec()))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl From<&serde_path_to_error::Path> for FieldPath {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment;
        let steps = path.iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        });
        Self(steps.collect())
    }
}

impl From<&serde_ignored::Path<'_>> for FieldPath {
    fn from(path: &serde_ignored::Path<'_>) -> Self {
        use serde_ignored::Path;
        match path {
            Path::Root => Self::default(),
            Path::Seq { parent, index } => Self::from(*parent).index(*index),
            Path::Map { parent, key } => Self::from(*parent).key(key),
            Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
                Self::from(*parent)
            }
        }
    }
}
