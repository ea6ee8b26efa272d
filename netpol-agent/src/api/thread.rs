//! A thread that answers requests: what the rest of the agent does delays no answer.

use std::future::pending;
use std::io;

use tokio::runtime::{Builder, Handle};

/// Starts the thread; what is spawned on its runtime runs until the agent ends.
///
/// # Errors
/// Where the kernel refuses a thread.
pub fn runtime() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name("api".to_owned()).spawn(move || runtime.block_on(pending::<()>()))?;
    Ok(handle)
}
