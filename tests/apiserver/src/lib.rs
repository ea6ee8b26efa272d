//! A fake API server for tests, with faults on demand.
//!
//! The server runs on its own thread. The functions of [`ApiServer`] can be called from any thread. Their effect is
//! complete when they return.
//!
//! ```no_run
//! use netpol_apiserver::{ApiServer, Effect, Fault, Options, Resource, Verb, WatchFault};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The server runs in the network namespace in which the caller bound the socket.
//! let server = ApiServer::start(std::net::TcpListener::bind("127.0.0.1:0")?, Options::default())?;
//! let kubeconfig = server.write_credentials(std::path::Path::new("agent-credentials"))?;
//! let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}});
//! let applied = server.apply(pod)?;
//! server.inject(Fault::new(Effect::status(429).retry_after(1)).verb(Verb::List).resource(Resource::Pods).times(2));
//! server.inject_watch_fault(None, WatchFault::CutInTheMiddle); // the next event is cut in the middle
//! server.delete(Resource::Pods, "shop", "web");
//! assert!(server.requests().iter().any(|request| request.query.contains_key("continue")));
//! let latency_starts = server.sent_at(applied.version);
//! # Ok(()) }
//! ```
//!
//! | to | use |
//! |---|---|
//! | change objects | [`ApiServer::apply`], [`ApiServer::delete`], [`ApiServer::mirror`] for a directory of manifests |
//! | inspect | [`ApiServer::get`], [`ApiServer::events`], [`ApiServer::requests`], [`ApiServer::sent_at`] |
//! | deny access | [`ApiServer::set_rules`], [`ApiServer::rotate_token`], [`ApiServer::expire_old_tokens`] |
//! | run commands in pods | [`ApiServer::on_exec`] |
//! | make requests fail | [`ApiServer::inject`] |
//! | make watches fail | [`ApiServer::inject_watch_fault`], [`ApiServer::delay_events`], [`ApiServer::compact`] |
//! | simulate an outage | [`ApiServer::set_network`], [`ApiServer::disconnect`] |
//! | change state in an outage | [`ApiServer::apply`], [`ApiServer::backup`], [`ApiServer::restore`], [`ApiServer::renumber`] |
//!
//! Differences from a real server: objects are not validated, clients may set the creation timestamp, Events are not
//! converted between their two API groups, and a deleted object is removed immediately.

mod auth;
mod body;
mod continue_token;
mod control;
mod credentials;
mod defaults;
mod exec;
mod faults;
mod history;
mod list;
mod log;
mod mirror;
mod object;
mod options;
mod resource;
mod respond;
mod route;
mod selector;
mod server;
mod shared;
mod status;
mod store;
mod tls;
mod watch;
mod write;

pub use auth::{Rules, RulesError};
pub use exec::{Exec, ExecRequest};
pub use faults::{Effect, Fault, FaultId};
pub use log::Request;
pub use mirror::{Mirror, MirrorError};
pub use options::{Options, StreamingLists};
pub use resource::{Resource, Verb};
pub use server::{ApiServer, Network, StartError};
pub use store::{Applied, ApplyError, Backup};
pub use watch::WatchFault;
