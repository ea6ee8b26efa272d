//! Runs the API on its own thread. So requests are read, and their time limits apply, even if the other threads are
//! busy.

use std::future::pending;
use std::io;

use tokio::runtime::{Builder, Handle};

/// Starts the thread. Tasks on its runtime run until the agent ends.
///
/// # Errors
/// If the thread cannot be started.
pub fn start_runtime() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name("api".to_owned()).spawn(move || runtime.block_on(pending::<()>()))?;
    Ok(handle)
}
