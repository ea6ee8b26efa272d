//! Between those who ask and the loop that knows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netpol_api::Status;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::reconcile::{Check, Finding};
use crate::source::{Inquiry, SourceState};

/// Who comes while so many wait is refused: each is asked about again after every change.
pub(super) const WAITERS: usize = 64;

/// A question for the loop.
#[derive(Debug)]
pub enum Question {
    /// The metrics page.
    Metrics(oneshot::Sender<String>),
    /// Whether the agent is ready.
    Ready(oneshot::Sender<Readiness>),
    /// How the agent is; who it is, the desk fills in.
    Status(oneshot::Sender<Status>),
    /// Whether a condition holds now.
    Check(Check, oneshot::Sender<Finding>),
}

/// Whether the agent is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Everything known at the start is enforced.
    Ready,
    /// Not everything is enforced yet.
    Starting,
    /// There are Node objects, and none has the agent's node name: the pods of that name are none of this node's.
    UnknownNode,
}

/// The loop's end: tells that something changed.
#[derive(Debug)]
pub struct Progress(watch::Sender<u64>);

impl Progress {
    /// The loop begins, something was taken in, or an interface changed.
    pub fn made(&self) {
        self.0.send_modify(|count| *count += 1);
    }
}

/// Who the agent is.
#[derive(Clone, Debug)]
pub struct About {
    /// Its node.
    pub node: String,
    /// Where its objects come from.
    pub source: String,
    /// How that source is.
    pub state: SourceState,
}

/// Takes questions; clones share everything.
#[derive(Clone, Debug)]
pub struct Desk {
    pub(super) about: Arc<About>,
    pub(super) inquiries: mpsc::Sender<Inquiry>,
    pub(super) progress: watch::Receiver<u64>,
    pub(super) waiters: Arc<Semaphore>,
    /// Held by the one request for metrics that the loop is answering.
    pub(super) metrics_turn: Arc<Semaphore>,
    pub(super) warnings: Warnings,
    questions: mpsc::Sender<Question>,
}

/// What keeps the agent from doing all that it was configured for, by subject. Clones share everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Warnings {
    pub(super) fn set(&self, subject: &'static str, warning: String) {
        self.lock().insert(subject, warning);
    }

    pub(super) fn clear(&self, subject: &'static str) {
        self.lock().remove(subject);
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        // Whole after each change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A desk; the questions that are asked there, and where to tell of progress.
pub fn desk(about: About, inquiries: mpsc::Sender<Inquiry>) -> (Desk, mpsc::Receiver<Question>, Progress) {
    let (questions, asked) = mpsc::channel(16);
    let (teller, progress) = watch::channel(0);
    let waiters = Arc::new(Semaphore::new(WAITERS));
    let metrics_turn = Arc::new(Semaphore::new(1));
    let warnings = Warnings::default();
    let desk = Desk { about: Arc::new(about), inquiries, progress, waiters, metrics_turn, warnings, questions };
    (desk, asked, Progress(teller))
}

impl Desk {
    /// Whether the loop has begun; before it has, there are no objects yet.
    pub(super) fn is_open(&self) -> bool {
        *self.progress.borrow() > 0
    }

    /// Asks the loop. `None`: it has ended.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(question(answer)).await.ok()?;
        answered.await.ok()
    }
}
