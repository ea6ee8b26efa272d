//! Errors as the CNI specification defines them.

use serde::Deserialize;
use serde_json::json;

use crate::LATEST_CNI_VERSION;

/// A well-known error code. Source: the CNI specification, "Error".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The version of the configuration is not supported.
    IncompatibleVersion = 1,
    /// A required environment variable is missing or invalid.
    InvalidEnvironment = 4,
    /// The configuration cannot be read.
    Io = 5,
    /// The configuration is not valid JSON, or a field has the wrong type.
    Decode = 6,
    /// The configuration is invalid.
    InvalidConfiguration = 7,
    /// The runtime should try again later.
    TryAgainLater = 11,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// Determines how the container runtime reacts.
    pub code: ErrorCode,
    /// What failed, and what to do.
    pub message: String,
}

impl CniError {
    /// Creates an error.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Returns the error as JSON for stdout. `cniVersion` is the version of the configuration `input`. If this version
    /// cannot be read, `cniVersion` is the latest one that the plugin supports.
    pub fn to_json(&self, input: &str) -> String {
        let version = version_of(input).unwrap_or_else(|| LATEST_CNI_VERSION.to_owned());
        json!({"cniVersion": version, "code": self.code as u32, "msg": self.message}).to_string()
    }
}

/// Returns the version of a configuration, if it can be read.
pub(crate) fn version_of(input: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned {
        cni_version: String,
    }
    serde_json::from_str(input).ok().map(|Versioned { cni_version }| cni_version)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_error_has_the_version_of_the_configuration() {
        let error = CniError::new(ErrorCode::TryAgainLater, "the agent is unavailable");
        let json = |input| serde_json::from_str::<Value>(&error.to_json(input)).unwrap();
        assert_eq!(
            json(r#"{"cniVersion":"0.4.0"}"#),
            json!({"cniVersion": "0.4.0", "code": 11, "msg": "the agent is unavailable"})
        );
        assert_eq!(json("not JSON")["cniVersion"], "1.1.0");
    }
}
