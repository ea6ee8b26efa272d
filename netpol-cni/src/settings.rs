//! The settings of the CNI plugin `netpol-cni`: its own fields in the CNI configuration.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::PLUGIN;

/// Maximum of [`Settings::timeout_seconds`]. It limits how long the start of one pod can delay the starts of others.
/// Runtimes hold a read lock while plugins run. If the configuration directory changes in the meantime, the runtime
/// waits for the write lock, and all later calls of plugins wait, too (containerd: `Setup` and `Load` of go-cni; CRI-O:
/// `forEachNetwork` and `syncNetworkConfig` of ocicni).
pub const MAX_TIMEOUT_SECONDS: u16 = 60;

/// What the plugin does if no agent responds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenAgentAway {
    /// Waits for the agent, at most [`Settings::timeout_seconds`], then fails, so that the runtime retries the start.
    #[default]
    Wait,
    /// Fails at once, so that the runtime retries the start.
    Deny,
    /// Lets the pod start without enforcement.
    Allow,
}

/// The settings of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// The path of the agent's socket.
    pub socket: PathBuf,
    /// What to do if no agent responds.
    pub when_agent_away: WhenAgentAway,
    /// How long one call waits until the pod's policies are enforced, in seconds; from 1 to [`MAX_TIMEOUT_SECONDS`].
    pub timeout_seconds: u16,
}

/// Why settings are invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError(String);

impl fmt::Display for SettingsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for SettingsError {}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: netpol_api::DEFAULT_SOCKET.into(),
            when_agent_away: WhenAgentAway::default(),
            timeout_seconds: 10,
        }
    }
}

impl Settings {
    /// Reads the settings from a plugin's configuration. Other fields are ignored.
    ///
    /// # Errors
    /// If a field is invalid.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let settings: Self = serde_json::from_str(text).map_err(|error| SettingsError(error.to_string()))?;
        settings.check()?;
        Ok(settings)
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// If a field is out of range.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !(1..=MAX_TIMEOUT_SECONDS).contains(&self.timeout_seconds) {
            let value = self.timeout_seconds;
            return Err(SettingsError(format!("timeoutSeconds is {value}; set 1 to {MAX_TIMEOUT_SECONDS}")));
        }
        if !self.socket.is_absolute() {
            return Err(SettingsError(format!("socket is {}; set an absolute path", self.socket.display())));
        }
        Ok(())
    }

    /// Returns the JSON object of the plugin, on one line. It is for `plugins`, the list of plugins in a CNI
    /// configuration.
    ///
    /// # Errors
    /// If the path of the socket is not UTF-8, or a field is out of range.
    pub fn entry(&self) -> Result<String, SettingsError> {
        #[derive(Serialize)]
        struct Entry<'a> {
            #[serde(rename = "type")]
            plugin: &'static str,
            #[serde(flatten)]
            settings: &'a Settings,
        }
        self.check()?;
        let entry = Entry { plugin: PLUGIN, settings: self };
        serde_json::to_string(&entry)
            .map_err(|error| SettingsError(format!("socket {}: {error}", self.socket.display())))
    }

    /// How long one call waits.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }
}

impl WhenAgentAway {
    /// All choices.
    pub const ALL: [Self; 3] = [Self::Wait, Self::Deny, Self::Allow];

    /// Returns the name in configurations and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

impl fmt::Display for WhenAgentAway {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for WhenAgentAway {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let choice = Self::ALL.into_iter().find(|choice| choice.name() == text);
        choice.ok_or_else(|| SettingsError(format!("{text:?} is not wait, deny or allow")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_the_same_settings() {
        for when_agent_away in WhenAgentAway::ALL {
            let settings = Settings { socket: "/run/a \"b\".sock".into(), when_agent_away, timeout_seconds: 7 };
            assert_eq!(Settings::parse(&settings.entry().unwrap()), Ok(settings));
            assert_eq!(when_agent_away.to_string().parse(), Ok(when_agent_away));
        }
        let default =
            r#"{"type":"netpol-cni","socket":"/run/netpol/agent.sock","whenAgentAway":"wait","timeoutSeconds":10}"#;
        assert_eq!(Settings::default().entry().unwrap(), default);
        assert_eq!(Settings::parse(r#"{"type":"netpol-cni","unknownField":1}"#), Ok(Settings::default()));
    }

    #[test]
    fn invalid_settings_are_refused() {
        for invalid in [
            r#"{"timeoutSeconds":0}"#,
            r#"{"timeoutSeconds":61}"#,
            r#"{"timeoutSeconds":-1}"#,
            r#"{"timeoutSeconds":"10"}"#,
            r#"{"whenAgentAway":"never"}"#,
            r#"{"socket":"agent.sock"}"#,
            r#"{"socket":5}"#,
            "5",
        ] {
            assert!(Settings::parse(invalid).is_err(), "{invalid}");
        }
        assert!("Wait".parse::<WhenAgentAway>().is_err());
    }
}
