//! Serves the HTTP API of the agent. Health and metrics are served over TCP, each on its own listener. A Unix socket
//! serves health and metrics, too. Only this socket serves the status, flows and other resources, requests that wait
//! for conditions, and requests of the CNI plugin when a pod starts.
//!
//! Only the main loop in `reconcile::task` has the state of the agent, so it answers most requests. Flows are read from
//! a buffer in memory instead. Once the loop has started, it also answers `/healthz`. Then a response to `/healthz`
//! proves that the loop runs. The conditions of waiting requests are checked again whenever the loop reports progress.

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
