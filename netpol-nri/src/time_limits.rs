//! Time limits of the runtime's calls to the plugin.

use std::time::Duration;

use tokio::time::timeout;

use crate::messages::Status;

/// NRI's default for `plugin_request_timeout`: `pkg/api/timeouts.go`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum of the reserve, the part of the runtime's timeout that is kept for the response. [`TimeLimits::handler`] is
/// the timeout minus the reserve, and [`TimeLimits::answer`] is the timeout minus half of the reserve. The reserve is
/// needed because on a loaded node, the plugin may wait hundreds of milliseconds for the CPU.
const MAX_RESERVE: Duration = Duration::from_secs(1);

/// Time limits of one call. They end before the runtime's timeout, so that the plugin can respond with an error if a
/// call takes too long. Without a response in time, the runtime disconnects the plugin, and the pod starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeLimits {
    /// Time within which the handler should return.
    pub(crate) handler: Duration,
    /// Time after which the handler is cancelled, and the plugin responds with an error.
    pub(crate) answer: Duration,
}

impl TimeLimits {
    /// Returns the limits of a request. `request_nanoseconds` is the timeout in the request, or 0 if it has none.
    /// `configured` is the runtime's timeout for all requests, if the runtime reports it.
    pub(crate) fn new(request_nanoseconds: i64, configured: Option<Duration>) -> Self {
        let timeout = match request_nanoseconds {
            0 => configured.unwrap_or(DEFAULT_TIMEOUT),
            // A negative timeout means that the time is already over.
            nanoseconds => Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)),
        };
        let reserve = (timeout / 4).min(MAX_RESERVE);
        Self { handler: timeout.saturating_sub(reserve), answer: timeout.saturating_sub(reserve / 2) }
    }

    /// Waits until the handler allows or refuses the start of a pod or container.
    ///
    /// # Errors
    /// If the handler refuses the start, or does not return in time. The error is the status for the response.
    pub(crate) async fn start(self, call: impl Future<Output = Result<(), String>>) -> Result<(), Status> {
        match timeout(self.answer, call).await {
            Ok(result) => result.map_err(|reason| Status::refused(&reason)),
            Err(_) => Err(Status::refused(&format!("not ready within {} ms", self.answer.as_millis()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_the_timeout_of_the_request_minus_a_reserve() {
        const SECOND: i64 = 1_000_000_000;
        // `request` is in nanoseconds, all other times are in milliseconds.
        for (request, configured, handler, answer) in [
            (2 * SECOND, Some(2000), 1500, 1750),
            (SECOND, Some(2000), 750, 875),
            (0, Some(800), 600, 700),
            (0, None, 1500, 1750),
            (60 * SECOND, None, 59_000, 59_500),
            (60 * SECOND, Some(2000), 59_000, 59_500),
            (-1, Some(2000), 0, 0),
        ] {
            let limits = TimeLimits::new(request, configured.map(Duration::from_millis));
            let expected =
                TimeLimits { handler: Duration::from_millis(handler), answer: Duration::from_millis(answer) };
            assert_eq!(limits, expected, "{request} {configured:?}");
        }
    }
}
