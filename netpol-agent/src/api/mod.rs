//! Serves the HTTP API of the agent: health and metrics over TCP, each on its own listener; over a Unix socket also
//! the status, waiting for conditions, and the start of pods.
//!
//! Only the main loop in `reconcile::task` has the state, and it answers each request. So a response, also of `/healthz`,
//! proves that the loop runs. Waiting requests are checked again whenever the loop reports progress.

mod connections;
mod pods;
mod requests;
mod routes;
mod server;
mod socket;
mod thread;
mod wait;

pub use requests::{About, LoopRequest, Progress, Readiness, Requests, requests};
pub use routes::unknown_node;
pub use server::{serve_health, serve_metrics, serve_socket};
pub use socket::{Socket, SocketError};
pub use thread::start_runtime;
