//! Sends flow records as log records to an OpenTelemetry collector: OTLP/HTTP with JSON bodies, as defined in
//! <https://opentelemetry.io/docs/specs/otlp/#otlphttp>.

mod backoff;
mod client;
mod encode;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use netpol_api::Record;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{DropReason, Endpoint, ExportCounters, Input};
use backoff::Backoff;
use client::{Client, Response};
use encode::Encoder;

/// Maximum number of records in a batch.
const BATCH: usize = 512;
/// Maximum time that the first record of a batch waits for further records.
const DELAY: Duration = Duration::from_secs(1);
/// Maximum time for which a request is retried. If the collector has not accepted it by then, its records are dropped.
const MAX_AGE: Duration = Duration::from_mins(5);

/// Sends records until the queue is closed.
pub(super) fn run(endpoint: Endpoint, node: &str, Input { records, counters, stopped }: Input) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let sender = Sender {
                url: format!("http://{}{}", endpoint.authority(), endpoint.path),
                client: Client::new(endpoint),
                encoder: Encoder::new(node),
                backoff: Backoff::default(),
                counters,
                stopped,
                logged_failure: None,
            };
            runtime.block_on(sender.run(records));
            // Dropping the runtime would wait until a DNS lookup of the collector has finished.
            runtime.shutdown_background();
        }
        Err(error) => tracing::error!(%error, "flow records are not exported: cannot start a runtime"),
    }
}

struct Sender {
    url: String,
    client: Client,
    encoder: Encoder,
    backoff: Backoff,
    counters: Arc<ExportCounters>,
    stopped: oneshot::Receiver<()>,
    /// The kind of the failure that was logged last; `None` if the collector has accepted all records of a request
    /// since then.
    logged_failure: Option<DropReason>,
}

impl Sender {
    async fn run(mut self, mut records: mpsc::Receiver<Arc<Record>>) {
        let mut batch = Vec::with_capacity(BATCH);
        while receive(&mut records, &mut batch).await {
            let mut rest = &batch[..];
            while !rest.is_empty() {
                // A request has as many of the records as its maximum size permits.
                let (body, count) = self.encoder.request(rest, SystemTime::now());
                self.deliver(body, count).await;
                rest = &rest[count..];
            }
            batch.clear();
        }
    }

    /// Sends a request, and retries until the collector has accepted or rejected it. Drops the records if the request
    /// becomes too old or the agent stops.
    async fn deliver(&mut self, body: String, records: usize) {
        let body = hyper::body::Bytes::from(body);
        let deadline = Instant::now() + MAX_AGE;
        loop {
            match self.client.send(body.clone()).await {
                Response::Accepted { rejected, message } => return self.accepted(records, rejected, &message),
                Response::Rejected(error) => return self.rejected(records, &error),
                Response::Retry { after, error } => {
                    self.report(DropReason::Expired, &error, "cannot send flow records to the collector; retrying");
                    let next = Instant::now() + self.backoff.pause(after);
                    if next > deadline || !self.wait(next).await {
                        return self.counters.count_dropped(DropReason::Expired, records);
                    }
                }
            }
        }
    }

    fn accepted(&mut self, records: usize, rejected: usize, message: &str) {
        let rejected = rejected.min(records);
        self.backoff = Backoff::default();
        self.counters.count_exported(records - rejected);
        self.counters.count_dropped(DropReason::Rejected, rejected);
        if rejected > 0 {
            self.report(DropReason::Rejected, message, "the collector rejected some flow records of a batch");
        } else if self.logged_failure.take().is_some() {
            tracing::info!(url = self.url, "the collector accepts flow records again");
        }
    }

    fn rejected(&mut self, records: usize, error: &str) {
        self.backoff = Backoff::default();
        self.counters.count_dropped(DropReason::Rejected, records);
        self.report(DropReason::Rejected, error, "the collector rejected flow records; check its URL and its log");
    }

    /// Logs a failure, unless the failure that was logged last is of the same kind.
    fn report(&mut self, kind: DropReason, error: &str, what: &str) {
        if self.logged_failure.replace(kind) != Some(kind) {
            tracing::warn!(url = self.url, error, "{what} (policy enforcement is not affected)");
        }
    }

    /// Waits until this time, for a retry. Returns false early if the agent stops.
    async fn wait(&mut self, until: Instant) -> bool {
        // A receiver that has returned a result must not be polled again.
        if self.stopped.is_terminated() {
            return false;
        }
        tokio::select! {
            () = sleep_until(until) => true,
            // Nothing is ever sent on this channel. When the agent stops, it drops the `oneshot::Sender`. This ends the
            // wait.
            _ = &mut self.stopped => false,
        }
    }
}

/// Receives the records of a batch. Returns false if the queue is closed and empty.
async fn receive(records: &mut mpsc::Receiver<Arc<Record>>, batch: &mut Vec<Arc<Record>>) -> bool {
    if records.recv_many(batch, BATCH).await == 0 {
        return false;
    }
    let send_at = Instant::now() + DELAY;
    while batch.len() < BATCH {
        let missing = BATCH - batch.len();
        match timeout_at(send_at, records.recv_many(batch, missing)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    true
}
