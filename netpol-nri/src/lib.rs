//! An NRI plugin: the container runtime calls it when a pod's network is ready, before the pod's containers start.
//!
//! [NRI](https://github.com/containerd/nri) is the plugin interface of containerd and CRI-O. After the network of a
//! pod's sandbox is set up, and before the pod's first container is created, the runtime calls `RunPodSandbox` of each
//! plugin and waits for the answer. It calls the plugins in the order of their indexes (99 in the example). A plugin
//! that answers with an error refuses the start; the kubelet tries again later. The runtime disconnects a plugin that
//! does not answer in time, and **the pod starts anyway**.
//!
//! ```no_run
//! # use std::{path::Path, sync::Arc, time::Duration};
//! use netpol_nri::{Handler, Options, Sandbox};
//!
//! struct Gate;
//!
//! impl Handler for Gate {
//!     async fn synchronize(&self, sandboxes: Vec<Sandbox>) {
//!         println!("{} sandboxes exist", sandboxes.len());
//!     }
//!
//!     async fn run(&self, sandbox: Sandbox, deadline: Duration) -> Result<(), String> {
//!         Err(format!("policies of {}/{} are not enforced after {deadline:?}", sandbox.namespace, sandbox.name))
//!     }
//!
//!     async fn stop(&self, _: Sandbox) {}
//! }
//!
//! # async fn connect() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::new("netpol", 99)?;
//! let ended = netpol_nri::connect(Path::new(netpol_nri::DEFAULT_SOCKET), &options, Arc::new(Gate)).await?;
//! # Ok(()) }
//! ```
//!
//! How [`connect`] handles a request of the runtime: it reads frames from the socket (module `mux`), messages from the
//! frames (`ttrpc`), and a call from each message (`call`). It runs the [`Handler`] for the call, and writes the result
//! back.

mod call;
mod connection;
mod error;
mod handler;
mod messages;
mod mux;
mod options;
mod retry;
mod sandbox;
mod status;
mod time_limits;
mod transport;
mod ttrpc;

pub use connection::{Disconnected, connect};
pub use error::Error;
pub use handler::{Handler, Runtime, Start};
pub use options::{Options, OptionsError};
pub use retry::keep_connected;
pub use sandbox::Sandbox;

/// The path where runtimes listen for plugins by default.
pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";
