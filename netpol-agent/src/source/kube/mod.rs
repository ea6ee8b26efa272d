//! `kube`: the objects of a cluster, from its API server.
//!
//! ```text
//! watch (one per resource) ─► trim ─► gather: store, what differs, what belongs together ─► batches
//!    access, client ─► API server ◄─ inquire
//! ```
//!
//! Why no `kube_runtime::watcher`: it fails a whole list for one object that does not deserialise, does not fall back from
//! streaming lists, hides `Retry-After`, and does not say when it lost sight and when it is back.

mod access;
mod backoff;
mod client;
mod failure;
mod gather;
mod inquire;
mod intern;
mod lines;
mod resource;
mod store;
mod trim;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{Instant as Deadline, sleep_until};

use super::state::SourceState;
use super::{Batch, Feed, Inquiry, Revision, SourceError};
use access::Access;
pub(super) use client::client;
use gather::{Gatherer, News};
use inquire::{Answered, Open};
pub use resource::Resource;
use watch::Watcher;

/// So much news is taken in at a time.
const AT_ONCE: usize = 4096;

/// How patient the source is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The first requests are spread over this time, as whole clusters start at once.
    pub spread: Duration,
    /// An answer must begin within this time.
    pub answer: Duration,
    /// A list that pauses for so long is dead, and so is a watch over HTTP/1.1, which has no pings.
    pub idle: Duration,
    /// Watches are made anew after this time, or up to twice as long.
    pub watch: Duration,
    /// After an absence of so long no watch goes on where it broke off: all is listed anew. API servers have nearly always
    /// forgotten by then, as they compact their storage as often.
    pub trust: Duration,
    /// A streaming list that pauses for so long is none.
    pub patience: Duration,
    /// Objects to a page.
    pub page: u32,
    /// Whether to ask for streaming lists first.
    pub streaming: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            spread: Duration::from_millis(500),
            answer: Duration::from_secs(15),
            idle: Duration::from_secs(100),
            watch: Duration::from_mins(5),
            trust: Duration::from_mins(5),
            patience: Duration::from_secs(10),
            page: 500,
            streaming: true,
        }
    }
}

/// Watches the cluster of this kubeconfig; without one, the cluster this runs in, or the default kubeconfig's.
///
/// # Errors
/// Where the credentials cannot be read. That the API server is not there is no error: it is waited for.
pub fn start(kubeconfig: Option<PathBuf>, options: Options) -> Result<Feed, SourceError> {
    let access = Arc::new(Access::open(kubeconfig, options.answer)?);
    let state = SourceState::default();
    let (news_in, news) = mpsc::channel(AT_ONCE);
    for resource in Resource::ALL {
        state.update(resource.plural(), |_| {});
        let watcher = Watcher::new(resource, access.clone(), news_in.clone(), options, state.clone());
        tokio::spawn(watcher.run());
    }
    let (sender, batches) = mpsc::channel(16);
    let (inquiries, asked) = mpsc::channel(16);
    let (answered_in, answered) = mpsc::channel(16);
    let source = Source {
        gatherer: Gatherer::new(&Resource::ALL),
        access,
        state: state.clone(),
        revision: Revision::default(),
        answered: answered_in,
        open: Vec::new(),
    };
    tokio::spawn(source.run(Inputs { news, asked, answered }, sender));
    Ok(Feed { batches, inquiries, state })
}

struct Inputs {
    news: mpsc::Receiver<(Resource, News)>,
    asked: mpsc::Receiver<Inquiry>,
    answered: mpsc::Receiver<Answered>,
}

struct Source {
    gatherer: Gatherer,
    access: Arc<Access>,
    state: SourceState,
    revision: Revision,
    answered: mpsc::Sender<Answered>,
    /// Inquiries that wait for the watch.
    open: Vec<Open>,
}

impl Source {
    async fn run(mut self, mut inputs: Inputs, batches: mpsc::Sender<Batch>) {
        let mut some = Vec::new();
        loop {
            let wake = self.gatherer.jump_at();
            tokio::select! {
                count = inputs.news.recv_many(&mut some, AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                    let now = Instant::now();
                    for (resource, news) in some.drain(..) {
                        self.gatherer.take(resource, news, now);
                    }
                }
                () = sleep_until(wake.map_or_else(Deadline::now, Deadline::from_std)), if wake.is_some() => {}
                Some(inquiry) = inputs.asked.recv() => inquire::ask(inquiry, self.access.clone(), self.answered.clone()),
                Some(answered) = inputs.answered.recv() => self.open.extend(answered.settle(&self.gatherer)),
            }
            for bundle in self.gatherer.due(Instant::now()) {
                self.revision.0 += 1;
                let gather::Bundle { events, after_gap, received } = bundle;
                if batches.send(Batch { revision: self.revision, events, after_gap, received }).await.is_err() {
                    return;
                }
            }
            self.answer();
            self.report();
        }
    }

    fn answer(&mut self) {
        let (gatherer, revision) = (&self.gatherer, self.revision);
        self.open.retain_mut(|open| !open.answer(gatherer, revision));
    }

    fn report(&self) {
        for resource in Resource::ALL {
            let (in_sync, objects) = self.gatherer.standing(resource);
            self.state.update(resource.plural(), |kind| (kind.in_sync, kind.objects) = (in_sync, objects));
        }
    }
}
