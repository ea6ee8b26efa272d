//! Tests the plugin with a fake container runtime.

mod bytes;
mod events;
mod faults;
mod recorder;
