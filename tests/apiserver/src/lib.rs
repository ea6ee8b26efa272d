//! An API server double: what an agent's source must cope with, on demand.
//!
//! It speaks the wire format of kube-apiserver 1.36 for the resources netpol reads and writes: lists with pages, watches with
//! bookmarks and streaming lists, refusals, expired versions, and faults that a test switches on and off. A thread of its
//! own serves; everything else here may be called from any thread and is in force once it returns.
//!
//! ```no_run
//! use netpol_apiserver::{ApiServer, Effect, Fault, Options, Resource, Verb, WatchFault};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Bound by the caller, so in whatever network namespace the caller was in.
//! let server = ApiServer::start(std::net::TcpListener::bind("127.0.0.1:0")?, Options::default())?;
//! let kubeconfig = server.write_credentials(std::path::Path::new("agent-credentials"))?;
//! let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}});
//! let applied = server.apply(pod)?;
//! server.inject(Fault::on(Effect::status(429).retry_after(1)).verb(Verb::List).resource(Resource::Pods).times(2));
//! server.watch_fault(None, WatchFault::Tear); // the next event ends in the middle of its bytes
//! server.delete(Resource::Pods, "shop", "web");
//! assert!(server.requests().iter().any(|request| request.query.contains_key("continue")));
//! let latency_starts = server.sent_at(applied.version);
//! # Ok(()) }
//! ```
//!
//! | to | use |
//! |---|---|
//! | change objects | [`ApiServer::apply`], [`ApiServer::delete`], [`ApiServer::mirror`] of a directory of manifests |
//! | look | [`ApiServer::get`], [`ApiServer::events`], [`ApiServer::requests`], [`ApiServer::sent_at`] |
//! | refuse | [`ApiServer::set_rules`], [`ApiServer::rotate_token`], [`ApiServer::expire_old_tokens`] |
//! | spoil requests | [`ApiServer::inject`] |
//! | spoil watches | [`ApiServer::watch_fault`], [`ApiServer::delay_events`], [`ApiServer::compact`] |
//! | be away | [`ApiServer::network`], [`ApiServer::disconnect`] |
//! | come back different | edit while away; [`ApiServer::backup`] and [`ApiServer::restore`]; [`ApiServer::renumber`] |
//!
//! It does not validate objects, takes creation times that are given, converts no events between their two API groups, and deletes at once.

mod auth;
mod body;
mod control;
mod credentials;
mod defaults;
mod faults;
mod history;
mod list;
mod log;
mod mirror;
mod object;
mod options;
mod page;
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
pub use faults::{Effect, Fault, FaultId};
pub use log::Request;
pub use mirror::{Mirror, MirrorError};
pub use options::{Options, StreamingLists};
pub use resource::{Resource, Verb};
pub use server::{ApiServer, Network, StartError};
pub use store::{Applied, ApplyError, Backup};
pub use watch::WatchFault;
