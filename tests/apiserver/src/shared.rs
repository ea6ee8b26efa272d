//! State shared between the server thread and the functions for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::auth::Rules;
use crate::credentials::Credentials;
use crate::exec::Handler;
use crate::faults::Faults;
use crate::log::Request;
use crate::options::{Options, StreamingLists};
use crate::resource::Resource;
use crate::server::Network;
use crate::store::Store;
use crate::watch::WatchFault;

/// Everything that can change while a server runs. Some fields start with the value of a field of [`Options`], and are
/// described there.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) rules: Rules,
    pub(crate) user: String,
    pub(crate) credentials: Credentials,
    pub(crate) faults: Faults,
    /// The log of all requests.
    pub(crate) requests: Vec<Request>,
    /// Decides what a command in a pod does.
    pub(crate) exec: Option<Handler>,
    pub(crate) exec_protocols: &'static [&'static str],
    pub(crate) date: Option<&'static str>,
    pub(crate) self_reviews: bool,
    /// When each watch event was first passed to a socket, by resource version.
    pub(crate) sent: BTreeMap<u64, Instant>,
    /// The number of the list page that was requested last, by resource.
    pub(crate) pages: BTreeMap<Resource, usize>,
    /// All faults that tests have applied to watches, in order. `None` means the watches of all resources.
    pub(crate) watch_faults: Vec<(Option<Resource>, WatchFault)>,
    /// The number of open watches, by resource.
    pub(crate) open_watches: BTreeMap<Resource, usize>,
    /// The delay between a change and its watch event.
    pub(crate) delay: Duration,
    /// [`Options::streaming_lists`].
    pub(crate) streaming: StreamingLists,
    pub(crate) bookmark_every: Duration,
    pub(crate) watch_timeout: Duration,
}

/// The state, and channels that notify about changes.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the watches after a change of the state.
    pub(crate) changed: watch::Sender<()>,
    /// The simulated state of the network.
    pub(crate) network: watch::Sender<Network>,
    /// Sending a value closes all connections.
    pub(crate) cuts: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn new(options: Options, credentials: Credentials) -> Self {
        let state = State {
            store: Store::new(options.history, options.first_version),
            rules: options.rules,
            user: options.user,
            credentials,
            faults: Faults::default(),
            requests: Vec::new(),
            exec: None,
            exec_protocols: options.exec_protocols,
            date: options.date,
            self_reviews: options.self_reviews,
            sent: BTreeMap::new(),
            pages: BTreeMap::new(),
            watch_faults: Vec::new(),
            open_watches: BTreeMap::new(),
            delay: Duration::ZERO,
            streaming: options.streaming_lists,
            bookmark_every: options.bookmark_every,
            watch_timeout: options.watch_timeout,
        };
        Self {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            network: watch::Sender::new(Network::Up),
            cuts: watch::Sender::new(()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the watches.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_replace(());
        result
    }

    /// Waits for the delay of [`Network::Slow`]. In the other states of the network, returns immediately.
    pub(crate) async fn throttle(&self) {
        let network = *self.network.borrow();
        match network {
            Network::Slow(time) => tokio::time::sleep(time).await,
            Network::Up | Network::Refuse | Network::BlackHole => {}
        }
    }
}
