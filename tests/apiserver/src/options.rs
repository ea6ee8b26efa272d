//! Options of a fake API server.

use std::time::Duration;

use crate::auth::Rules;

/// The configuration with which a fake API server starts. Functions of `ApiServer` change some of these settings at
/// runtime.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of changes that the history keeps for each resource. A watch that starts from an older resource version
    /// gets status 410.
    pub history: usize,
    /// Interval of bookmarks on watches that requested bookmarks. A bookmark is sent only if the resource version has
    /// changed since the previous bookmark.
    pub bookmark_every: Duration,
    /// Duration of a watch without `timeoutSeconds`.
    pub watch_timeout: Duration,
    /// How watches that request an initial list are served.
    pub streaming_lists: StreamingLists,
    /// The permissions of [`Self::user`].
    pub rules: Rules,
    /// The name of the only user. All tokens authenticate this user.
    pub user: String,
    /// Additional names or addresses for the certificate, besides the listener's address, the loopback addresses and
    /// `kubernetes.default.svc`.
    pub names: Vec<String>,
    /// The resource version of the empty server. The first object gets the next version.
    pub first_version: u64,
    /// Whether the server offers HTTP/2. Every API server offers it, but a proxy in front of the server may not.
    pub http2: bool,
    /// The protocols of commands in pods, most preferred first.
    pub exec_protocols: &'static [&'static str],
    /// The `Date` header of all responses; `None` sends the current time.
    pub date: Option<&'static str>,
    /// Whether the server responds to a `SelfSubjectReview`, with which a client requests its own user name.
    pub self_reviews: bool,
}

impl Default for Options {
    /// Uses the intervals of kube-apiserver, and allows all requests.
    fn default() -> Self {
        Self {
            history: 10_000,
            bookmark_every: Duration::from_mins(1),
            watch_timeout: Duration::from_mins(30),
            streaming_lists: StreamingLists::Served,
            rules: Rules::all(),
            user: "system:serviceaccount:kube-system:netpol-agent".to_owned(),
            names: Vec::new(),
            first_version: 1,
            http2: true,
            exec_protocols: &["v5.channel.k8s.io", "v4.channel.k8s.io"],
            date: None,
            self_reviews: true,
        }
    }
}

/// How a watch with `sendInitialEvents` is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamingLists {
    /// Sends the objects, then a bookmark that marks the end of the initial events.
    Served,
    /// The storage does not support initial events: the response has status 200 and contains an ERROR event.
    NoStorageSupport,
    /// The feature gate `WatchList` is off: status 422.
    Forbidden,
    /// The server, or a proxy in front of it, ignores `sendInitialEvents`: the objects are sent as for any watch
    /// without a resource version, and no bookmark marks their end.
    Ignored,
}
