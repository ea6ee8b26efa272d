//! Serves the HTTP API of the agent: health and metrics over TCP, each on its own listener; over a Unix socket also
//! the status, flows and other resources, waiting for conditions, and the start of pods.
//!
//! Only the main loop in `reconcile::task` has the state, and it answers each request, except those for flows, which are
//! in memory. So a response, also of `/healthz`, proves that the loop runs. Waiting requests are checked again whenever the loop reports progress.

mod body;
mod connections;
mod flows;
mod pods;
mod requests;
pub mod resources;
mod routes;
mod server;
mod socket;
mod stream;
mod thread;
mod v1;
mod wait;

pub use requests::{About, LoopRequest, Progress, Readiness, Requests, requests};
pub use routes::unknown_node;
pub use server::{serve_health, serve_metrics, serve_socket};
pub use socket::{Socket, SocketError};
pub use thread::start_runtime;
pub use v1::PATHS;
