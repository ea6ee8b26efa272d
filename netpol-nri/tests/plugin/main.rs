//! The plugin with a runtime.

mod bytes;
mod events;
mod faults;
mod recorder;
