//! The thread that writes Events. The main loop does not wait for this thread, except for a short time when the agent
//! exits. A publication is one write to the API server: a new Event, or an update of one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};

use super::aggregate::{Aggregator, Publication};
use super::sink::{DropReason, EventCounters, MAX_QUEUED_MESSAGES, Message, Sink};
use super::writer::{WriteFailure, WriteResult, Writer};
use netpol_source::kube::jitter;

/// The first pause after a failure. Each further pause is twice as long, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_mins(1);
/// Time to write unreported Events when the agent exits.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum time that [`Handle::finish`] waits.
pub const FINISH_TIMEOUT: Duration = Duration::from_millis(600);
/// Maximum number of messages that are received at once.
const MAX_BATCH: usize = 256;

/// Waits for the thread to end.
#[derive(Debug)]
pub struct Handle {
    ended: oneshot::Receiver<()>,
}

impl Handle {
    /// Waits until the thread has written unreported Events, for at most [`FINISH_TIMEOUT`]. Drop the [`Sink`] first:
    /// the thread ends when the queue is closed.
    pub async fn finish(self) {
        // A `RecvError` also means that the thread has ended. After the timeout, this function does not wait longer.
        let _ = timeout(FINISH_TIMEOUT, self.ended).await;
    }
}

/// Starts the thread. `client` creates a client with the current credentials. The new thread calls `client`, because
/// connections belong to the runtime that created them. It calls `client` again when the API server rejects the
/// credentials.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(
    node: &str,
    client: impl Fn() -> Result<Client, String> + Send + 'static,
) -> std::io::Result<(Sink, Handle)> {
    let (sender, messages) = mpsc::channel(MAX_QUEUED_MESSAGES);
    let counters = Arc::new(EventCounters::default());
    let (end, ended) = oneshot::channel();
    let sink = Sink::new(sender, Arc::clone(&counters), node);
    let node = node.to_owned();
    std::thread::Builder::new().name("kube-events".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => {
                runtime.block_on(async {
                    match Writer::open(Box::new(client), node) {
                        Ok(writer) => run(writer, messages, &counters).await,
                        Err(error) => {
                            tracing::error!(
                                error,
                                "Events are not written: cannot read the credentials for the API server"
                            );
                        }
                    }
                });
                runtime.shutdown_background();
            }
            Err(error) => tracing::error!(%error, "Events are not written: cannot start a runtime"),
        }
        // The handle may have been dropped.
        let _ = end.send(());
    })?;
    Ok((sink, Handle { ended }))
}

/// Receives messages until the queue is closed, and then writes the unreported Events. A second task writes the
/// publications, one at a time. So this task can receive messages while a request to the API server is in progress.
async fn run(mut writer: Writer, mut messages: mpsc::Receiver<Message>, counters: &EventCounters) {
    let (publication_sender, mut publications) = mpsc::channel::<Publication>(1);
    let (result_sender, mut results) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(publication) = publications.recv().await {
            let result = writer.publish(&publication).await;
            if result_sender.send((publication, result)).await.is_err() {
                break;
            }
        }
    });
    let mut aggregator = Aggregator::new(Instant::now());
    let mut backoff = Backoff::default();
    let mut received = Vec::with_capacity(MAX_BATCH);
    let mut is_writing = false;
    // Set when the queue is closed, because the agent exits.
    let mut deadline: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if !is_writing && backoff.is_over(now) {
            if let Some(publication) = aggregator.take_due(now) {
                // The queue has room, because nothing is being written.
                is_writing = publication_sender.send(publication).await.is_ok();
            } else if deadline.is_some() {
                return;
            }
        }
        // The next write waits until a publication is due, the rate limit permits a write, and the backoff is over.
        let next = aggregator.next_due().map(|due| due.max(aggregator.next_token_at(now)).max(backoff.until(now)));
        let wake = [next.filter(|_| !is_writing), deadline].into_iter().flatten().min();
        let wake = wake.unwrap_or(now + MAX_PAUSE);
        tokio::select! {
            count = messages.recv_many(&mut received, MAX_BATCH), if deadline.is_none() => {
                let now = Instant::now();
                if count == 0 {
                    aggregator.flush(now);
                    deadline = Some(now + FLUSH_TIMEOUT);
                }
                for message in received.drain(..) {
                    process(message, &mut aggregator, counters, now);
                }
            }
            Some((publication, result)) = results.recv(), if is_writing => {
                is_writing = false;
                handle_result(&publication, result, &mut aggregator, &mut backoff, counters);
            }
            () = sleep_until(wake.into()) => {
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return;
                }
            }
        }
    }
}

fn process(message: Message, aggregator: &mut Aggregator, counters: &EventCounters, now: Instant) {
    match message {
        Message::Denied(denied) => {
            if let Err(reason) = aggregator.denied(*denied, now) {
                counters.count_dropped(reason, 1);
            }
        }
        Message::Notices(all) => aggregator.set_notices(all, now),
    }
}

fn handle_result(
    publication: &Publication,
    result: WriteResult,
    aggregator: &mut Aggregator,
    backoff: &mut Backoff,
    counters: &EventCounters,
) {
    let now = Instant::now();
    match result {
        WriteResult::Written => {
            counters.count_published();
            backoff.success();
            aggregator.published(publication, now);
        }
        WriteResult::Discarded(reason, error) => {
            match reason {
                // This is normal: pods are deleted all the time.
                DropReason::Deleted => tracing::debug!(error, "the object of an Event was deleted"),
                DropReason::Invalid => {
                    tracing::warn!(error, "the API server rejected an Event as invalid; this is a bug in netpol");
                }
                // The writer does not return these reasons.
                DropReason::QueueFull | DropReason::TooManyPods => {}
            }
            counters.count_dropped(reason, 1);
            backoff.success();
            aggregator.discarded(publication, reason, now);
        }
        WriteResult::Retry(failure) => {
            backoff.failure(&failure, now);
            aggregator.failed(publication, now);
        }
    }
}

/// The pause after failures, which grows with each failure. A failure is logged, unless the previous write failed for
/// the same cause.
#[derive(Debug, Default)]
struct Backoff {
    until: Option<Instant>,
    pause: Duration,
    /// The cause of the last failure that was logged: the rule that the agent's `ClusterRole` lacks, or an empty text
    /// for any other cause. `None` if the last write did not fail.
    reported: Option<&'static str>,
}

impl Backoff {
    fn is_over(&self, now: Instant) -> bool {
        self.until(now) <= now
    }

    fn until(&self, now: Instant) -> Instant {
        self.until.unwrap_or(now)
    }

    fn success(&mut self) {
        if self.reported.is_some() {
            tracing::info!("can write Events again");
        }
        *self = Self::default();
    }

    fn failure(&mut self, failure: &WriteFailure, now: Instant) {
        self.pause = (self.pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
        // Agents that failed at the same time should not retry at the same time.
        let pause = self.pause + jitter(self.pause / 4);
        self.until = Some(now + pause.max(failure.retry_after));
        let missing = failure.missing.unwrap_or_default();
        if self.reported.replace(missing) == Some(missing) {
            return;
        }
        let error = &failure.error;
        if missing.is_empty() {
            tracing::warn!(error, "cannot write Events; retrying (policy enforcement is not affected)");
        } else {
            tracing::warn!(
                error,
                "not permitted to write Events; retrying. Add to the agent's ClusterRole: - {missing}"
            );
        }
    }
}
