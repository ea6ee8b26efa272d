//! A CNI plugin that delays the start of a pod until the agent enforces the pod's policies.
//!
//! ```text
//! environment, stdin ─► plugin ─► hold ─► agent ─► POST /v1/pods/start on the agent's socket
//!                          │        └ repeats the request until the policies are enforced or the time is over
//!                          └► prevResult, or an error, on stdout
//! ```
//!
//! Source: the [CNI specification 1.1](https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md).

mod agent;
mod environment;
mod error;
mod hold;
mod plugin;
mod prev_result;
mod settings;

pub use environment::Environment;
pub use error::{CniError, ErrorCode};
pub use plugin::run;
pub use settings::{MAX_TIMEOUT_SECONDS, Settings, SettingsError, WhenAgentAway};

/// The name of the plugin: its `type` in a configuration, and the file name of its executable.
pub const PLUGIN: &str = "netpol-cni";

/// The versions of the CNI specification that the plugin supports: all versions with lists of plugins.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The latest of [`VERSIONS`].
const LATEST_CNI_VERSION: &str = VERSIONS[VERSIONS.len() - 1];
