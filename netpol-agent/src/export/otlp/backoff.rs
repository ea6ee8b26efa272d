//! Pauses before a failed request is sent again: <https://opentelemetry.io/docs/specs/otlp/#otlphttp-throttling>.

use std::time::Duration;

use netpol_source::kube::jitter;

/// The first pause after a failure. Each further pause is twice as long, up to [`MAX`].
const MIN: Duration = Duration::from_secs(1);
/// The longest pause, if the collector requests none.
const MAX: Duration = Duration::from_secs(30);
/// The longest pause that a collector can request.
const MAX_REQUESTED: Duration = Duration::from_mins(4);

/// Computes growing pauses. After an accepted or rejected request, the caller starts again with a new `Backoff`.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// The last growing pause, without the random part. It also grows at failures for which the collector requests a
    /// pause.
    last: Duration,
}

impl Backoff {
    /// Returns the pause after a failure: the pause that the collector requests with `Retry-After`, or else the growing
    /// pause. A random part is added, so that agents that failed at the same time do not retry at the same time.
    pub(super) fn pause(&mut self, requested: Option<Duration>) -> Duration {
        self.last = (self.last * 2).clamp(MIN, MAX);
        let pause = requested.map_or(self.last, |requested| requested.min(MAX_REQUESTED));
        pause + jitter(pause / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_unless_the_collector_requests_one() {
        let mut backoff = Backoff::default();
        for (requested, expected) in [(None, 1), (None, 2), (Some(7), 7), (None, 8), (None, 16), (None, 30), (None, 30)]
        {
            let pause = backoff.pause(requested.map(Duration::from_secs));
            let expected = Duration::from_secs(expected);
            assert!((expected..=expected * 5 / 4).contains(&pause), "{pause:?} instead of {expected:?}");
        }
        assert!(backoff.pause(Some(Duration::MAX)) <= MAX_REQUESTED * 5 / 4);
    }
}
