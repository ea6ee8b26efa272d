//! What the agent answers: over TCP health, and metrics on another listener; over a Unix socket also its status, and what
//! people wait for.
//!
//! The loop in `reconcile::task` alone knows. It is sent each question, so that whoever gets an answer knows that the
//! loop is alive, and is asked again whenever it tells of progress.

mod connections;
mod desk;
mod pages;
mod server;
mod socket;
mod thread;
mod wait;

pub use desk::{About, Desk, Progress, Question, Readiness, desk};
pub use pages::unknown_node;
pub use server::{serve_health, serve_metrics, serve_socket};
pub use socket::{Socket, SocketError};
pub use thread::runtime;
