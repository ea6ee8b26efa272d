//! The thread: what it does, however long it takes, keeps nobody waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};

use super::aggregate::{Aggregator, Publication};
use super::desk::{Desk, Outcome, Setback};
use super::sink::{Dropped, Message, Numbers, QUEUE, Sink};

/// The first pause after a failure; doubles up to [`SLOWEST`].
const FASTEST: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_mins(1);
/// At the end there is so much time for what is not told yet.
const FLUSH: Duration = Duration::from_secs(1);
/// Messages that are taken in at once.
const AT_ONCE: usize = 256;

/// Waits for the thread.
#[derive(Debug)]
pub struct Handle {
    ended: oneshot::Receiver<()>,
}

impl Handle {
    /// Lets it write what it has, for a second at most. The [`Sink`] has to be dropped before.
    pub async fn finish(self) {
        // An error is its end, too.
        let _ = timeout(FLUSH + Duration::from_millis(100), self.ended).await;
    }
}

/// Starts the thread. `client` makes a client with the credentials there are now; it is called there, as connections belong
/// to the runtime that made them, and again when the API server does not know us any more.
///
/// # Errors
/// Where there can be no thread.
pub fn start(
    node: &str,
    client: impl Fn() -> Result<Client, String> + Send + 'static,
) -> std::io::Result<(Sink, Handle)> {
    let (sender, messages) = mpsc::channel(QUEUE);
    let numbers = Arc::new(Numbers::default());
    let (end, ended) = oneshot::channel();
    let sink = Sink::new(sender, Arc::clone(&numbers), node);
    let node = node.to_owned();
    std::thread::Builder::new().name("kube-events".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => {
                runtime.block_on(async {
                    match Desk::open(Box::new(client), node) {
                        Ok(desk) => run(desk, messages, &numbers).await,
                        Err(error) => {
                            tracing::error!(error, "no Events are written: cannot read credentials for the API server");
                        }
                    }
                });
                runtime.shutdown_background();
            }
            Err(error) => tracing::error!(%error, "no Events are written: cannot start a runtime"),
        }
        // Nobody may be waiting.
        let _ = end.send(());
    })?;
    Ok((sink, Handle { ended }))
}

async fn run(mut desk: Desk, mut messages: mpsc::Receiver<Message>, numbers: &Numbers) {
    let (jobs, mut work) = mpsc::channel::<Publication>(1);
    let (answers, mut outcomes) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(publication) = work.recv().await {
            let outcome = desk.publish(&publication).await;
            if answers.send((publication, outcome)).await.is_err() {
                break;
            }
        }
    });
    let mut aggregator = Aggregator::new(Instant::now());
    let mut patience = Patience::default();
    let mut taken = Vec::with_capacity(AT_ONCE);
    let mut busy = false;
    let mut end: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if !busy && patience.is_over(now) {
            if let Some(publication) = aggregator.take(now) {
                // There is room: there was none at work.
                busy = jobs.send(publication).await.is_ok();
            } else if end.is_some() {
                return;
            }
        }
        let next = aggregator.wake().map(|wake| wake.max(aggregator.allowed(now)).max(patience.until(now)));
        let wake = [next.filter(|_| !busy), end].into_iter().flatten().min();
        let wake = wake.unwrap_or(now + SLOWEST);
        tokio::select! {
            count = messages.recv_many(&mut taken, AT_ONCE), if end.is_none() => {
                let now = Instant::now();
                if count == 0 {
                    aggregator.hurry(now);
                    end = Some(now + FLUSH);
                }
                for message in taken.drain(..) {
                    take_in(message, &mut aggregator, numbers, now);
                }
            }
            Some((publication, outcome)) = outcomes.recv(), if busy => {
                busy = false;
                settle(&publication, outcome, &mut aggregator, &mut patience, numbers);
            }
            () = sleep_until(wake.into()) => {
                if end.is_some_and(|end| end <= Instant::now()) {
                    return;
                }
            }
        }
    }
}

fn take_in(message: Message, aggregator: &mut Aggregator, numbers: &Numbers, now: Instant) {
    match message {
        Message::Denied(denied) => {
            if let Err(why) = aggregator.denied(*denied, now) {
                numbers.lose(why, 1);
            }
        }
        Message::Policies(all) => aggregator.policies(all, now),
    }
}

fn settle(
    publication: &Publication,
    outcome: Outcome,
    aggregator: &mut Aggregator,
    patience: &mut Patience,
    numbers: &Numbers,
) {
    let now = Instant::now();
    match outcome {
        Outcome::Written => {
            numbers.publish();
            patience.success();
            aggregator.published(publication, now);
        }
        Outcome::Lost(why, error) => {
            match why {
                // Pods come and go.
                Dropped::Gone => tracing::debug!(error, "an Event's object is gone"),
                Dropped::Invalid => tracing::warn!(error, "the API server does not take an Event; this is a bug"),
                Dropped::Queue | Dropped::Memory => {}
            }
            numbers.lose(why, 1);
            patience.success();
            aggregator.lost(publication, why, now);
        }
        Outcome::Later(setback) => {
            patience.setback(&setback, now);
            aggregator.failed(publication, now);
        }
    }
}

/// Waits longer and longer, and says so once.
#[derive(Debug, Default)]
struct Patience {
    until: Option<Instant>,
    pause: Duration,
    /// The log knows that nothing is written, for want of this rule or, where that is empty, for another reason.
    told: Option<&'static str>,
}

impl Patience {
    fn is_over(&self, now: Instant) -> bool {
        self.until(now) <= now
    }

    fn until(&self, now: Instant) -> Instant {
        self.until.unwrap_or(now)
    }

    fn success(&mut self) {
        if self.told.is_some() {
            tracing::info!("Events are written again");
        }
        *self = Self::default();
    }

    fn setback(&mut self, setback: &Setback, now: Instant) {
        self.pause = (self.pause * 2).clamp(FASTEST, SLOWEST);
        // Nodes that failed together do not come back together.
        let jitter = self.pause.mul_f64(f64::from(std::process::id() % 100) / 400.0);
        self.until = Some(now + (self.pause + jitter).max(setback.after));
        let missing = setback.missing.unwrap_or_default();
        if self.told.replace(missing) == Some(missing) {
            return;
        }
        let error = &setback.error;
        if missing.is_empty() {
            tracing::warn!(error, "cannot write Events; it is tried again, and nothing else is affected");
        } else {
            tracing::warn!(
                error,
                "may not write Events; it is tried again. The agent's ClusterRole lacks: - {missing}"
            );
        }
    }
}
