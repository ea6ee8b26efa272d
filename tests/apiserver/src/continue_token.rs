//! The token in `metadata.continue`, with which a client requests the next page of a list.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// A position in a list. Lists are sorted by key: `namespace/name`, or `name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContinueToken {
    /// The resource version of the list. `None`: the next page has the current objects.
    pub(crate) version: Option<u64>,
    /// The next page has the objects with this key or a greater one.
    pub(crate) start: String,
}

impl ContinueToken {
    /// Returns the position after a key.
    pub(crate) fn after(version: u64, key: &str) -> Self {
        Self { version: Some(version), start: format!("{key}\0") }
    }

    /// Returns a token for the same position in the current objects. The pages before this position are from an older
    /// version, so kube-apiserver calls such a list inconsistent.
    pub(crate) fn inconsistent(&self) -> Self {
        Self { version: None, start: self.start.clone() }
    }

    /// Encodes the token as kube-apiserver 1.36 does.
    pub(crate) fn encode(&self) -> String {
        // In kube-apiserver, `start` begins with a slash only if the token has a version.
        let (version, slash) = match self.version {
            Some(version) => (version.to_string(), "/"),
            None => ("-1".to_owned(), ""),
        };
        let start = Value::from(format!("{slash}{}", self.start));
        URL_SAFE_NO_PAD.encode(format!("{{\"v\":\"meta.k8s.io/v1\",\"rv\":{version},\"start\":{start}}}"))
    }

    pub(crate) fn parse(token: &str) -> Option<Self> {
        let token: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let version = token.get("rv")?.as_i64()?;
        let start = token.get("start")?.as_str()?.trim_start_matches('/').to_owned();
        Some(Self { version: u64::try_from(version).ok(), start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_match_a_real_server() {
        let recorded = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MjM1LCJzdGFydCI6Ii9tb24vcHJvbVx1MDAwMCJ9";
        let token = ContinueToken::after(235, "mon/prom");
        assert_eq!(token.encode(), recorded);
        assert_eq!(ContinueToken::parse(recorded), Some(token.clone()));
        let inconsistent = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoibW9uL3Byb21cdTAwMDAifQ";
        assert_eq!(token.inconsistent().encode(), inconsistent);
        assert_eq!(ContinueToken::parse(inconsistent), Some(token.inconsistent()));
        assert_eq!(ContinueToken::parse("nonsense"), None);
    }
}
