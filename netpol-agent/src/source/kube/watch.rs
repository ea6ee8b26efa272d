//! Follows one resource forever: a full list, then a watch from its version. Retries after every failure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::Options;
use super::access::Access;
use super::backoff::{Backoff, jitter};
use super::failure::{Failure, Status};
use super::gather::WatchEvent;
use super::lines::Lines;
use super::resource::Resource;
use super::trim::{Seen, parse_object, version};
use crate::source::state::SourceState;

/// A watch that lasted this long was not a failure.
const WORKING_AFTER: Duration = Duration::from_secs(5);

/// Follows one resource.
pub(super) struct Watcher {
    pub(super) resource: Resource,
    pub(super) access: Arc<Access>,
    pub(super) events: mpsc::Sender<(Resource, WatchEvent)>,
    pub(super) options: Options,
    pub(super) state: SourceState,
    backoff: Backoff,
    /// Backoff between lists, if the server keeps rejecting versions that it has just sent.
    stale: Backoff,
    /// Signals that another watcher has connected.
    back: watch::Receiver<Option<Instant>>,
    /// The version to continue from; `None` to start with a full list.
    position: Option<String>,
    /// Whether the position is of a full list that was just received.
    fresh: bool,
    streaming: bool,
    contact: Contact,
    current_error: Option<String>,
    /// The current operation.
    verb: &'static str,
}

/// Whether changes can be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contact {
    Kept,
    /// Changes are not missed if the watch continues where it broke off.
    Broken,
    /// Changes may have been missed since then.
    Lost(Instant),
}

/// How a stream ended.
enum StreamEnd {
    /// The server ended it after its timeout.
    Timeout,
    /// The version is too old to continue from.
    Expired(String),
    /// The server has no streaming lists. The value says whether that is certain.
    NoStreaming(bool),
    /// The receiver of the events was dropped.
    ReceiverDropped,
}

#[derive(Deserialize)]
struct Line<'l> {
    #[serde(rename = "type")]
    kind: &'l str,
    #[serde(borrow)]
    object: &'l RawValue,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ListPage<'p> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'p RawValue>>,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: ListMeta,
}

impl Watcher {
    pub(super) fn new(
        resource: Resource,
        access: Arc<Access>,
        events: mpsc::Sender<(Resource, WatchEvent)>,
        options: Options,
        state: SourceState,
    ) -> Self {
        let (streaming, back) = (options.streaming, access.back());
        Self {
            resource,
            access,
            events,
            options,
            state,
            backoff: Backoff::default(),
            stale: Backoff::default(),
            back,
            position: None,
            fresh: false,
            streaming,
            contact: Contact::Kept,
            current_error: None,
            verb: "list",
        }
    }

    pub(super) async fn run(mut self) {
        sleep(jitter(self.options.spread)).await;
        loop {
            let started = Instant::now();
            self.back.mark_unchanged();
            let result = self.attempt().await;
            if started.elapsed() > WORKING_AFTER {
                self.reset_backoff();
            }
            let mut retry_after = None;
            match result {
                Ok(StreamEnd::ReceiverDropped) => return,
                // Continue at once, unless streams end again and again.
                Ok(StreamEnd::Timeout) if started.elapsed() > Duration::from_secs(1) => continue,
                Ok(StreamEnd::Timeout) => {}
                Ok(StreamEnd::Expired(why)) => {
                    tracing::info!(resource = %self.resource, reason = why, "watch version expired; listing again");
                    self.position = None;
                    self.mark_lost().await;
                    // The server is reachable, and other watchers may have recovered: wait less than after failures.
                    sleep(self.stale.next(None)).await;
                    continue;
                }
                Ok(StreamEnd::NoStreaming(certain)) => {
                    tracing::info!(resource = %self.resource, certain, "API server has no streaming lists; listing in pages");
                    self.streaming = false;
                    continue;
                }
                Err(failure) if failure.is_gone() => {
                    self.count(&failure);
                    self.position = None;
                    self.mark_lost().await;
                    sleep(self.stale.next(None)).await;
                    continue;
                }
                Err(failure) => {
                    retry_after = failure.retry_after();
                    self.failed(&failure).await;
                }
            }
            let wait = self.backoff.next(retry_after);
            // If this watcher waited on while others have recovered, new objects would be mixed with old ones. A server
            // that has just started may reject requests at first, so use shorter waits than for an unreachable one.
            tokio::select! {
                () = sleep(wait) => {}
                Ok(()) = self.back.changed(), if retry_after.is_none() => self.backoff.hurry(),
            }
        }
    }

    /// Resets the backoff after the watch has worked.
    fn reset_backoff(&mut self) {
        self.backoff.reset();
        self.stale.reset();
    }

    async fn attempt(&mut self) -> Result<StreamEnd, Failure> {
        // A server that was restored from a backup may have passed this version, in another history.
        if matches!(self.contact, Contact::Lost(since) if since.elapsed() > self.options.trust) {
            self.position = None;
        }
        self.verb = if self.position.is_none() && !self.streaming { "list" } else { "watch" };
        if self.position.is_none() && !self.streaming {
            let version = self.pages().await?;
            self.position = Some(version);
            self.fresh = true;
            self.verb = "watch";
        }
        if let Some(position) = &self.position
            && !std::mem::take(&mut self.fresh)
        {
            // A watch from a future version is silent until the server reaches it, and all changes before would be
            // missed.
            let now = self.newest().await?;
            if version(&now) < version(position) {
                return Ok(StreamEnd::Expired(format!("the API server went back from version {position} to {now}")));
            }
        }
        self.stream().await
    }

    fn url(&self, query: &str) -> String {
        format!("{}?{query}", self.resource.path())
    }

    async fn body(&self, query: &str) -> Result<Vec<u8>, Failure> {
        let response = self.access.get(&self.url(query)).await?;
        let idle = self.options.idle;
        let body = timeout(idle, response.into_body().collect_bytes()).await;
        let body = body.map_err(|_| Failure::Timeout(idle))?;
        body.map(|bytes| bytes.to_vec()).map_err(|error| Failure::Connection(crate::chain::chain(&error)))
    }

    /// Returns the current version of the server.
    async fn newest(&self) -> Result<String, Failure> {
        let body = self.body("limit=1").await?;
        let page: ListPage<'_> =
            serde_json::from_slice(&body).map_err(|error| Failure::InvalidResponse(error.to_string()))?;
        Ok(page.metadata.resource_version)
    }

    /// Reads a full list in pages, and returns its version.
    async fn pages(&mut self) -> Result<String, Failure> {
        let mut next = String::new();
        let mut limit = self.options.page;
        self.report(WatchEvent::Began).await;
        loop {
            let query = if next.is_empty() {
                if limit == 0 { "limit=0".to_owned() } else { format!("limit={limit}") }
            } else {
                format!("limit={limit}&continue={next}")
            };
            let body = match self.body(&query).await {
                // The list took longer than the server keeps its version: list again without pages.
                Err(failure) if failure.is_gone() && limit > 0 && !next.is_empty() => {
                    self.count(&failure);
                    (next, limit) = (String::new(), 0);
                    self.report(WatchEvent::Began).await;
                    continue;
                }
                result => result?,
            };
            let received = Instant::now();
            let page: ListPage<'_> =
                serde_json::from_slice(&body).map_err(|error| Failure::InvalidResponse(error.to_string()))?;
            for item in page.items.into_iter().flatten() {
                self.item(item.get(), received).await;
            }
            next = page.metadata.next;
            if next.is_empty() {
                self.listed(&page.metadata.resource_version).await?;
                return Ok(page.metadata.resource_version);
            }
        }
    }

    async fn item(&mut self, text: &str, received: Instant) {
        match self.parsed(text) {
            Some(seen) => self.report(WatchEvent::Item(seen, received)).await,
            None => self.report(WatchEvent::Unnamed).await,
        };
    }

    async fn listed(&mut self, text: &str) -> Result<(), Failure> {
        if text.is_empty() {
            return Err(Failure::InvalidResponse("a list without a resourceVersion".to_owned()));
        }
        self.contact = Contact::Kept;
        self.state.update(self.resource.plural(), |kind| {
            kind.relists += u64::from(kind.listed);
            kind.listed = true;
        });
        self.report(WatchEvent::Listed(version(text))).await;
        self.recovered();
        Ok(())
    }

    /// Watches. Starts with a full list if there is no position yet.
    async fn stream(&mut self) -> Result<StreamEnd, Failure> {
        let mut listing = self.position.is_none();
        // Spread the timeouts of the watches.
        let seconds = self.options.watch.as_secs() + jitter(self.options.watch).as_secs();
        let from = match &self.position {
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
            Some(position) => format!("resourceVersion={position}"),
        };
        let url = self.url(&format!("watch=1&allowWatchBookmarks=true&{from}&timeoutSeconds={seconds}"));
        let response = match self.access.get(&url).await {
            Err(Failure::Status { code: 400 | 422, .. }) if listing => return Ok(StreamEnd::NoStreaming(true)),
            result => result?,
        };
        if listing {
            self.report(WatchEvent::Began).await;
        } else {
            if std::mem::replace(&mut self.contact, Contact::Kept) != Contact::Kept {
                self.report(WatchEvent::Resumed).await;
            }
            self.recovered();
        }
        // HTTP/2 pings find a dead connection. An API server sends no bookmark while the version of a kind stays the
        // same (`k8s.io/apiserver/pkg/storage/cacher`), so a silent watch is normal until its timeout.
        let silence = if response.version() == http::Version::HTTP_2 {
            Duration::from_secs(seconds) + self.options.answer
        } else {
            self.options.idle
        };
        let mut lines = Lines::of(response.into_body());
        loop {
            let idle = if listing { self.options.patience } else { silence };
            let (line, received) = match timeout(idle, lines.next()).await {
                Err(_) if listing => return Ok(StreamEnd::NoStreaming(false)),
                Err(_) => return Err(Failure::Timeout(idle)),
                Ok(result) => match result? {
                    Some(line) => line,
                    None if listing => {
                        return Err(Failure::Connection("the list ended before it was complete".to_owned()));
                    }
                    None => return Ok(StreamEnd::Timeout),
                },
            };
            let line: Line<'_> =
                serde_json::from_str(line).map_err(|error| Failure::InvalidResponse(error.to_string()))?;
            match (line.kind, listing) {
                ("ADDED" | "MODIFIED", true) => self.item(line.object.get(), received).await,
                ("ADDED" | "MODIFIED" | "DELETED", false) => {
                    self.reset_backoff();
                    if !self.change(line.kind, line.object.get(), received).await {
                        return Ok(StreamEnd::ReceiverDropped);
                    }
                }
                ("BOOKMARK", _) => {
                    let Bookmark { metadata } = serde_json::from_str(line.object.get())
                        .map_err(|error| Failure::InvalidResponse(error.to_string()))?;
                    if listing && !metadata.annotations.contains_key("k8s.io/initial-events-end") {
                        return Ok(StreamEnd::NoStreaming(true));
                    }
                    if std::mem::take(&mut listing) {
                        self.verb = "watch";
                        self.listed(&metadata.resource_version).await?;
                    } else {
                        self.report(WatchEvent::Position(version(&metadata.resource_version))).await;
                    }
                    self.position = Some(metadata.resource_version);
                }
                ("ERROR", _) => {
                    let status: Status = serde_json::from_str(line.object.get()).unwrap_or_default();
                    return match status.code {
                        410 => Ok(StreamEnd::Expired(status.message)),
                        code if listing && code != 429 => {
                            tracing::debug!(code, message = status.message, "no streaming list");
                            Ok(StreamEnd::NoStreaming(true))
                        }
                        code => Err(Failure::Status { code, message: status.message, retry_after: None }),
                    };
                }
                (other, _) => return Err(Failure::InvalidResponse(format!("a watch event of type {other}"))),
            }
        }
    }

    /// Sends a change. Returns false if the receiver was dropped.
    async fn change(&mut self, kind: &str, text: &str, received: Instant) -> bool {
        let Some(seen) = self.parsed(text) else { return true };
        if seen.version > 0 {
            self.position = Some(seen.version.to_string());
        }
        let events =
            if kind == "DELETED" { WatchEvent::Deleted(seen, received) } else { WatchEvent::Changed(seen, received) };
        self.report(events).await
    }

    fn parsed(&self, text: &str) -> Option<Seen> {
        match parse_object(self.resource, text) {
            Ok(seen) => Some(seen),
            Err(error) => {
                tracing::error!(resource = %self.resource, error, "skipped an object without metadata.name");
                None
            }
        }
    }

    async fn report(&self, events: WatchEvent) -> bool {
        self.state.update(self.resource.plural(), |kind| kind.last_received = Some(Instant::now()));
        self.events.send((self.resource, events)).await.is_ok()
    }

    /// Records that changes may be missed from now on.
    async fn mark_lost(&mut self) {
        if !matches!(self.contact, Contact::Lost(_)) {
            self.contact = Contact::Lost(Instant::now());
            self.report(WatchEvent::Lost).await;
        }
    }

    fn count(&self, failure: &Failure) {
        let reason = failure.reason();
        self.state.update(self.resource.plural(), |kind| *kind.errors.entry(reason).or_default() += 1);
    }

    async fn failed(&mut self, failure: &Failure) {
        self.count(failure);
        if matches!(failure, Failure::Status { code: 401, .. } | Failure::Connection(_)) {
            self.access.renew();
        }
        // A connection that breaks is reopened at once, and nothing is missed. One that cannot be opened is an outage.
        if self.backoff.is_waiting() || self.position.is_none() {
            self.mark_lost().await;
            let text = failure.report(self.verb, self.resource);
            if self.current_error.as_ref() != Some(&text) {
                tracing::error!("{text}");
                self.state.update(self.resource.plural(), |kind| kind.current_error = Some(text.clone()));
                self.current_error = Some(text);
            }
        } else {
            self.contact = Contact::Broken;
            self.report(WatchEvent::Broken).await;
            tracing::info!(resource = %self.resource, "{}", failure.report(self.verb, self.resource));
        }
    }

    fn recovered(&mut self) {
        if self.current_error.take().is_some() {
            tracing::info!("can {} {} again", self.verb, self.resource);
            self.access.answers();
            self.back.mark_unchanged();
            self.state.update(self.resource.plural(), |kind| kind.current_error = None);
        }
    }
}
