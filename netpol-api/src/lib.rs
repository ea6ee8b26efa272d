//! What can an agent be asked on its node? HTTP/1.1 and JSON on a Unix socket: the answers, and a client.
//!
//! | path | answer |
//! |---|---|
//! | `/v1/status` | [`Status`] |
//! | `/v1/wait?for=CONDITION&timeout=30s` | [`Waited`]; `for` may be given several times |
//! | `/metrics`, `/healthz`, `/readyz` | as on the agent's `--metrics` |
//!
//! Everything else than 200 comes with a [`Refusal`].

mod client;
mod condition;
mod duration;
mod status;
mod wait;

pub use client::{Client, ClientError};
pub use condition::{Condition, ConditionError, Kind, Target};
pub use duration::{parse_duration, show_duration};
pub use status::{Directions, Endpoint, LeftOut, Status};
pub use wait::{Answer, Outcome, Pending, Refusal, Waited};

/// Where an agent listens unless told otherwise.
pub const SOCKET: &str = "/run/netpol/agent.sock";

/// The longest wait that is granted.
pub const LONGEST: std::time::Duration = std::time::Duration::from_hours(1);
