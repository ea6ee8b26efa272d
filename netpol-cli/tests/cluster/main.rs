//! Tests of the commands for a cluster. They use a fake API server, and a fake agent for each node. The commands reach
//! the agents by `pods/exec`.

#![expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

mod agents;
#[path = "../common/mod.rs"]
mod common;
mod fixtures;
mod flows;
mod live_input;
mod nodes;
mod objects;
mod pipes;
mod record;
mod schemas;
mod suspension;
mod tables;
