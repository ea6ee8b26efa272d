//! Options with which an NRI plugin registers at a container runtime.

use std::time::Duration;

use thiserror::Error;

/// Name and index of the plugin, and time limits for the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub(crate) name: String,
    pub(crate) index: String,
    /// How long the runtime may take to register and configure the plugin. The runtime accepts plugins one at a time,
    /// and waits 5 s for a plugin that does not register. So this plugin may have to wait for other plugins.
    pub registration_timeout: Duration,
    /// How long the runtime may take to list its sandboxes, counted from the start of the connection. containerd first
    /// waits for pod starts that are in progress, including their CNI plugins, and then sends the list.
    pub synchronization_timeout: Duration,
}

/// Why a plugin cannot register under a name or index.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptionsError {
    /// The runtime would refuse the name.
    #[error("invalid plugin name {0:?}: use letters, digits and the characters -_.+")]
    Name(String),
    /// The index has more than two digits.
    #[error("invalid plugin index {0}: use a number from 0 to 99")]
    Index(u8),
}

impl Options {
    /// Returns options with default timeouts. The runtime calls plugins in ascending order of their indexes, 0 to 99.
    ///
    /// # Errors
    /// If the runtime would refuse the name or the index.
    pub fn new(name: &str, index: u8) -> Result<Self, OptionsError> {
        // `CheckPluginName` and `CheckPluginIndex` in pkg/api/plugin.go of NRI.
        let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.+".contains(character);
        if name.is_empty() || !name.chars().all(allowed) {
            return Err(OptionsError::Name(name.to_owned()));
        }
        if index > 99 {
            return Err(OptionsError::Index(index));
        }
        Ok(Self {
            name: name.to_owned(),
            index: format!("{index:02}"),
            registration_timeout: Duration::from_secs(30),
            synchronization_timeout: Duration::from_mins(5),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indexes_follow_nri() {
        for name in ["netpol", "net-pol_1.2+x"] {
            assert!(Options::new(name, 0).is_ok(), "{name}");
        }
        for name in ["", "net pol", "nét", "a/b"] {
            assert_eq!(Options::new(name, 0), Err(OptionsError::Name(name.to_owned())));
        }
        assert_eq!(Options::new("netpol", 7).unwrap().index, "07");
        assert_eq!(Options::new("netpol", 100), Err(OptionsError::Index(100)));
    }
}
