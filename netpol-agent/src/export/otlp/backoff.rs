//! Pauses between retries: <https://opentelemetry.io/docs/specs/otlp/#otlphttp-throttling>.

use std::time::Duration;

use netpol_source::kube::jitter;

/// The first pause after a failure. Each further pause is twice as long, up to [`MAX`].
const MIN: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(30);
/// Longest pause that a collector can request.
const MAX_REQUESTED: Duration = Duration::from_mins(4);

/// The pauses since the last accepted request.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: Duration,
}

impl Backoff {
    /// Returns the pause after a failure: the pause that the collector requests with `Retry-After`, or else a growing
    /// pause. It is partly random: agents that failed at the same time should not retry at the same time.
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
