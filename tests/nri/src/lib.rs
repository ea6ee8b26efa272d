//! A container runtime's NRI (Node Resource Interface) server for tests, with faults on demand.
//!
//! The server is a test double: it behaves as containerd's server, and shares no code with netpol's NRI plugin. It uses
//! threads with blocking I/O. All functions can be called from any thread.
//!
//! ```no_run
//! use netpol_nri_double::{NriServer, Options, PodSandbox, Start};
//! # use std::{path::Path, time::Duration};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = NriServer::start(Path::new("nri.sock"), Options::default())?;
//! server.wait_for_plugin("netpol", Duration::from_secs(5))?;
//! let pod = PodSandbox::new("a1", "shop", "web").on_network("/run/netns/web", &["10.1.0.5"]);
//! match server.run(&pod) {
//!     Start::Allowed => {}                                       // start the containers
//!     Start::Refused(reason) => println!("{reason}"),            // try again with a new sandbox
//!     Start::Unguarded(reason) => println!("{reason}"),          // start the containers: no plugin decided
//! }
//! server.stop(&pod);
//! # Ok(()) }
//! ```
//!
//! | to | use |
//! |---|---|
//! | start and stop pods | [`NriServer::run`], [`NriServer::stop`], [`NriServer::remove`], [`NriServer::add`] for a pod that is already running |
//! | restart the runtime | [`NriServer::disconnect`], [`NriServer::shutdown`], drop |
//! | send invalid messages | [`Plugin`]: one connection without the server's logic |
//!
//! Sources of the server's behavior, in <https://github.com/containerd/nri> unless stated otherwise:
//!
//! | behavior | source |
//! |---|---|
//! | frames, and the maximum length of the frames that containerd can read | `pkg/net/multiplex/mux.go`; connection IDs: `ttrpc.go` in the same directory |
//! | messages, and how they are split into frames | `channel.go`, `client.go`, `server.go` of <https://github.com/containerd/ttrpc>, and Go's `bufio` |
//! | fields of messages | `pkg/api/api.proto` |
//! | registration, splitting of `Synchronize`, timeouts, and the failures that close the connection but do not stop the start of a pod | `pkg/adaptation/plugin.go` |
//! | one event at a time, in the order of the plugins' indexes | `pkg/adaptation/adaptation.go`; containerd's `internal/nri/nri.go` |
//! | required plugins | `plugins/default-validator/default-validator.go` |
//! | a refused pod is stopped and removed | containerd's `internal/cri/nri/nri_api_linux.go` |
//!
//! Differences: the adjustments and updates of containers that a plugin requests are ignored.

mod messages;
mod plugin;
mod server;
mod wire;

pub use messages::{
    ConfigureRequest, ConfigureResponse, Container, Empty, LinuxNamespace, LinuxPodSandbox, PodSandbox,
    PodSandboxRequest, RegisterPluginRequest, StateChangeEvent, SynchronizeRequest, SynchronizeResponse, event,
};
pub use plugin::{CallError, Plugin, RegistrationResponse};
pub use server::{Events, NriServer, Options, Start, Timeout};
