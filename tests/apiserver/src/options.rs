//! What kind of server it is.

use std::time::Duration;

use crate::auth::Rules;

/// How a server is set up. What may change while it runs has a function of its own.
#[derive(Clone, Debug)]
pub struct Options {
    /// Changes kept for each resource; who wants to know of older ones is told 410.
    pub history: usize,
    /// How often a watch that asked for bookmarks gets one, if there is anything new to say.
    pub bookmark_every: Duration,
    /// How long a watch lasts that did not ask for a time.
    pub watch_timeout: Duration,
    /// What becomes of a watch that asks for a list first.
    pub streaming_lists: StreamingLists,
    /// What its user may do.
    pub rules: Rules,
    /// Who bears the tokens.
    pub user: String,
    /// Further names or addresses its certificate is for, besides the listener's address, those of the loopback interface and
    /// `kubernetes.default.svc`.
    pub names: Vec<String>,
    /// The version before the first object's.
    pub first_version: u64,
    /// Whether it offers HTTP/2, as every API server does; a proxy before it may not.
    pub http2: bool,
}

impl Default for Options {
    /// kube-apiserver's own times; everything is allowed.
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
        }
    }
}

/// What becomes of a watch with `sendInitialEvents`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamingLists {
    /// Objects, then a bookmark that says these were all.
    Served,
    /// The server has them, its storage does not: an ERROR event in an answer of status 200.
    NoStorageSupport,
    /// A server whose feature gate is off: status 422.
    Forbidden,
    /// A server, or a proxy before it, that does not know the option: objects as after any watch without a version, and no word
    /// that these were all.
    Ignored,
}
