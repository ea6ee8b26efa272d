//! Connects again when a connection ends.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{Disconnected, Error, Handler, Options, connect};

/// Wait before the first new connection. Pods start without the plugin until then.
const FIRST: Duration = Duration::from_millis(50);
/// Longest wait.
const LAST: Duration = Duration::from_secs(2);

/// Keeps a connection to the runtime, with a back-off from 50 ms to 2 s.
///
/// `report` receives why each connection ended, and the wait before the next. After each, the handler gets the list of
/// sandboxes again.
pub async fn keep_connected<H: Handler>(
    socket: &Path,
    options: &Options,
    handler: Arc<H>,
    mut report: impl FnMut(Result<Disconnected, Error>, Duration),
) -> Infallible {
    let mut wait = FIRST;
    loop {
        let started = Instant::now();
        let ended = connect(socket, options, handler.clone()).await;
        if started.elapsed() > LAST {
            wait = FIRST;
        }
        report(ended, wait);
        sleep(wait).await;
        wait = (wait * 2).min(LAST);
    }
}
