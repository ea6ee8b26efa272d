//! Connects again when a connection ends.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{Disconnected, Error, Handler, Options, connect};

/// The first wait after a connection ends. Until the plugin is connected again, pods start without it.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Connects to the runtime, and connects again whenever the connection ends, with a back-off from 50 ms to 2 s. A
/// connection of more than 2 s resets the back-off.
///
/// `report` receives the reason why a connection ended, and the wait before the next connection. On each new
/// connection, the handler receives the list of sandboxes again.
pub async fn keep_connected<H: Handler>(
    socket: &Path,
    options: &Options,
    handler: Arc<H>,
    mut report: impl FnMut(Result<Disconnected, Error>, Duration),
) -> Infallible {
    let mut wait = FIRST_WAIT;
    loop {
        let started = Instant::now();
        let ended = connect(socket, options, handler.clone()).await;
        if started.elapsed() > LONGEST_WAIT {
            wait = FIRST_WAIT;
        }
        report(ended, wait);
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
