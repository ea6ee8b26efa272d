//! Watches one resource forever: a full list, then a watch from the list's version. Retries after every failure.

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
use super::trim::{ReceivedObject, parse_object, version};
use crate::state::SourceState;

/// A watch that lasted this long has worked: the backoff is reset.
const WORKING_AFTER: Duration = Duration::from_secs(5);

/// Watches one resource.
pub(super) struct Watcher {
    pub(super) resource: Resource,
    pub(super) access: Arc<Access>,
    pub(super) events: mpsc::Sender<(Resource, WatchEvent)>,
    pub(super) options: Options,
    pub(super) state: SourceState,
    backoff: Backoff,
    /// Backoff between lists, if the server keeps rejecting versions that it has just sent.
    expired_backoff: Backoff,
    /// Signals that another watcher has recovered.
    recoveries: watch::Receiver<Option<Instant>>,
    /// The version to continue from; `None` to start with a full list.
    position: Option<String>,
    /// Whether `position` is the version of a full list that was just received.
    just_listed: bool,
    /// Whether streaming lists are tried.
    streaming: bool,
    connection: ConnectionState,
    /// When the response to the current watch request began; `None` until then.
    watching_since: Option<Instant>,
    current_error: Option<String>,
    /// The current operation.
    verb: &'static str,
}

/// Whether changes may have been missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    /// No change was missed.
    Working,
    /// The watch failed. No change is missed if it resumes at the same version.
    Broken,
    /// Changes may have been missed since this time.
    Lost(Instant),
}

/// How a stream ended.
enum StreamEnd {
    /// The server ended the stream, usually after the timeout of the watch.
    Timeout,
    /// The version is too old to continue from.
    Expired(String),
    /// The server has no streaming lists. `false`: this is only assumed, because no data arrived in time.
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
        let (streaming, recoveries) = (options.streaming, access.recoveries());
        Self {
            resource,
            access,
            events,
            options,
            state,
            backoff: Backoff::default(),
            expired_backoff: Backoff::default(),
            recoveries,
            position: None,
            just_listed: false,
            streaming,
            connection: ConnectionState::Working,
            watching_since: None,
            current_error: None,
            verb: "list",
        }
    }

    pub(super) async fn run(mut self) {
        sleep(jitter(self.options.start_jitter)).await;
        loop {
            let started = Instant::now();
            self.recoveries.mark_unchanged();
            let result = self.attempt().await;
            // Only the time since the response began counts. A request without a response can take long, too, but it is
            // a failure.
            if self.watching_since.take().is_some_and(|since| since.elapsed() > WORKING_AFTER) {
                self.reset_backoff();
            }
            let mut retry_after = None;
            match result {
                Ok(StreamEnd::ReceiverDropped) => return,
                // Continue immediately, unless streams end within a second.
                Ok(StreamEnd::Timeout) if started.elapsed() > Duration::from_secs(1) => continue,
                Ok(StreamEnd::Timeout) => {}
                Ok(StreamEnd::Expired(why)) => {
                    tracing::info!(resource = %self.resource, reason = why, "watch version expired; listing again");
                    self.position = None;
                    self.mark_lost().await;
                    // The server is reachable, so this delay is independent of the backoff for failures.
                    sleep(self.expired_backoff.next(None)).await;
                    continue;
                }
                Ok(StreamEnd::NoStreaming(certain)) => {
                    tracing::info!(resource = %self.resource, certain, "API server has no streaming lists; listing in pages");
                    self.streaming = false;
                    continue;
                }
                Err(failure) if failure.is_gone() => {
                    self.count_failure(&failure);
                    self.position = None;
                    self.mark_lost().await;
                    sleep(self.expired_backoff.next(None)).await;
                    continue;
                }
                Err(failure) => {
                    retry_after = failure.retry_after();
                    self.handle_failure(&failure).await;
                }
            }
            let wait = self.backoff.next(retry_after);
            // If another watcher has recovered, retry at once. Otherwise new objects of other resources would be
            // combined with old objects of this resource. A server that has just started may reject this attempt, too,
            // so the next delays are short again.
            tokio::select! {
                () = sleep(wait) => {}
                Ok(()) = self.recoveries.changed(), if retry_after.is_none() => self.backoff.shorten(),
            }
        }
    }

    /// Resets the backoff after the watch has worked.
    fn reset_backoff(&mut self) {
        self.backoff.reset();
        self.expired_backoff.reset();
    }

    async fn attempt(&mut self) -> Result<StreamEnd, Failure> {
        // After a long outage, list again: a server that was restored from a backup may have reached the version
        // `position` again, with different changes.
        if matches!(self.connection, ConnectionState::Lost(since) if since.elapsed() > self.options.max_resume_age) {
            self.position = None;
        }
        self.verb = if self.position.is_none() && !self.streaming { "list" } else { "watch" };
        if self.position.is_none() && !self.streaming {
            let version = self.list_pages().await?;
            self.position = Some(version);
            self.just_listed = true;
            self.verb = "watch";
        }
        if let Some(position) = &self.position
            && !std::mem::take(&mut self.just_listed)
        {
            // A watch from a future version returns nothing until the server reaches that version, and misses all
            // changes before it.
            let current = self.current_version().await?;
            if version(&current) < version(position) {
                return Ok(StreamEnd::Expired(format!(
                    "the API server went back from version {position} to {current}"
                )));
            }
        }
        self.stream().await
    }

    fn url(&self, query: &str) -> String {
        format!("{}?{query}", self.resource.path())
    }

    async fn read_body(&self, query: &str) -> Result<Vec<u8>, Failure> {
        let response = self.access.get(&self.url(query)).await?;
        let idle = self.options.idle_timeout;
        let body = timeout(idle, response.into_body().collect_bytes()).await;
        let body = body.map_err(|_| Failure::Timeout(idle))?;
        body.map(|bytes| bytes.to_vec()).map_err(|error| Failure::Connection(netpol_policy::text::error_chain(&error)))
    }

    /// Returns the current version of the server.
    async fn current_version(&self) -> Result<String, Failure> {
        let body = self.read_body("limit=1").await?;
        let page: ListPage<'_> = serde_json::from_slice(&body).map_err(|error| invalid_response(&error))?;
        Ok(page.metadata.resource_version)
    }

    /// Reads a full list in pages, and returns its version.
    async fn list_pages(&mut self) -> Result<String, Failure> {
        let mut next = String::new();
        let mut limit = self.options.page_size;
        self.send_event(WatchEvent::Began).await;
        loop {
            let query = if next.is_empty() {
                if limit == 0 { "limit=0".to_owned() } else { format!("limit={limit}") }
            } else {
                format!("limit={limit}&continue={next}")
            };
            let body = match self.read_body(&query).await {
                // The list took too long, so the server no longer has the list's version: list again without pages.
                Err(failure) if failure.is_gone() && limit > 0 && !next.is_empty() => {
                    self.count_failure(&failure);
                    (next, limit) = (String::new(), 0);
                    self.send_event(WatchEvent::Began).await;
                    continue;
                }
                result => result?,
            };
            let received = Instant::now();
            let page: ListPage<'_> = serde_json::from_slice(&body).map_err(|error| invalid_response(&error))?;
            for item in page.items.into_iter().flatten() {
                self.send_item(item.get(), received).await;
            }
            next = page.metadata.next;
            if next.is_empty() {
                self.finish_list(&page.metadata.resource_version).await?;
                return Ok(page.metadata.resource_version);
            }
        }
    }

    async fn send_item(&mut self, text: &str, received: Instant) {
        match self.parse(text) {
            Some(object) => self.send_event(WatchEvent::Item(object, received)).await,
            None => self.send_event(WatchEvent::Nameless).await,
        };
    }

    async fn finish_list(&mut self, text: &str) -> Result<(), Failure> {
        if text.is_empty() {
            return Err(Failure::InvalidResponse("a list without a resourceVersion".to_owned()));
        }
        self.connection = ConnectionState::Working;
        self.state.update(self.resource.plural(), |kind| {
            kind.relists += u64::from(kind.listed);
            kind.listed = true;
        });
        self.send_event(WatchEvent::Listed(version(text))).await;
        self.report_recovery();
        Ok(())
    }

    /// Watches. Starts with a full list if there is no position yet.
    async fn stream(&mut self) -> Result<StreamEnd, Failure> {
        let mut listing = self.position.is_none();
        // Without the random part, all watches would end at the same time.
        let seconds = self.options.watch_timeout.as_secs() + jitter(self.options.watch_timeout).as_secs();
        let response = match self.access.get(&self.stream_url(seconds)).await {
            Err(Failure::Status { code: 400 | 422, .. }) if listing => return Ok(StreamEnd::NoStreaming(true)),
            result => result?,
        };
        self.watching_since = Some(Instant::now());
        if listing {
            self.send_event(WatchEvent::Began).await;
        } else {
            if std::mem::replace(&mut self.connection, ConnectionState::Working) != ConnectionState::Working {
                self.send_event(WatchEvent::Resumed).await;
            }
            self.report_recovery();
        }
        // HTTP/2 pings detect a dead connection. An API server sends no bookmark while the version of a kind stays the
        // same (`k8s.io/apiserver/pkg/storage/cacher`), so a watch without any data is normal until its timeout.
        let max_idle = if response.version() == http::Version::HTTP_2 {
            Duration::from_secs(seconds) + self.options.response_timeout
        } else {
            self.options.idle_timeout
        };
        let mut lines = Lines::of(response.into_body());
        loop {
            let idle = if listing { self.options.streaming_list_idle_timeout } else { max_idle };
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
            let line: Line<'_> = serde_json::from_str(line).map_err(|error| invalid_response(&error))?;
            match (line.kind, listing) {
                ("ADDED" | "MODIFIED", true) => self.send_item(line.object.get(), received).await,
                ("ADDED" | "MODIFIED" | "DELETED", false) => {
                    self.reset_backoff();
                    if !self.send_change(line.kind, line.object.get(), received).await {
                        return Ok(StreamEnd::ReceiverDropped);
                    }
                }
                ("BOOKMARK", _) => match self.process_bookmark(line.object.get(), listing).await? {
                    Some(end) => return Ok(end),
                    None => listing = false,
                },
                ("ERROR", _) => {
                    return error_event_end(serde_json::from_str(line.object.get()).unwrap_or_default(), listing);
                }
                (other, _) => return Err(Failure::InvalidResponse(format!("a watch event of type {other}"))),
            }
        }
    }

    /// Returns the URL of a watch, which starts with a full list if there is no position yet.
    fn stream_url(&self, seconds: u64) -> String {
        let from = match &self.position {
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
            Some(position) => format!("resourceVersion={position}"),
        };
        self.url(&format!("watch=1&allowWatchBookmarks=true&{from}&timeoutSeconds={seconds}"))
    }

    /// Processes a bookmark. `listing` is true while the watch still sends the full list. In this case, the bookmark
    /// must have the annotation that marks the end of the list. If the annotation is missing, the server ignores
    /// `sendInitialEvents`, and this function returns how the watch ends.
    async fn process_bookmark(&mut self, text: &str, listing: bool) -> Result<Option<StreamEnd>, Failure> {
        let Bookmark { metadata } = serde_json::from_str(text).map_err(|error| invalid_response(&error))?;
        if listing && !metadata.annotations.contains_key("k8s.io/initial-events-end") {
            return Ok(Some(StreamEnd::NoStreaming(true)));
        }
        if listing {
            self.verb = "watch";
            self.finish_list(&metadata.resource_version).await?;
        } else {
            self.send_event(WatchEvent::Position(version(&metadata.resource_version))).await;
        }
        self.position = Some(metadata.resource_version);
        Ok(None)
    }

    /// Sends a change. Returns false if the receiver was dropped.
    async fn send_change(&mut self, kind: &str, text: &str, received: Instant) -> bool {
        let Some(object) = self.parse(text) else { return true };
        if object.version > 0 {
            self.position = Some(object.version.to_string());
        }
        let event = if kind == "DELETED" {
            WatchEvent::Deleted(object, received)
        } else {
            WatchEvent::Changed(object, received)
        };
        self.send_event(event).await
    }

    fn parse(&self, text: &str) -> Option<ReceivedObject> {
        match parse_object(self.resource, text) {
            Ok(object) => Some(object),
            Err(error) => {
                tracing::error!(resource = %self.resource, error, "skipped an object without metadata.name");
                None
            }
        }
    }

    async fn send_event(&self, event: WatchEvent) -> bool {
        // All events except `Began`, `Lost` and `Broken` mean that the API server has sent something.
        if !matches!(event, WatchEvent::Began | WatchEvent::Lost | WatchEvent::Broken) {
            self.state.update(self.resource.plural(), |kind| kind.last_received = Some(Instant::now()));
        }
        self.events.send((self.resource, event)).await.is_ok()
    }

    /// Records that changes may be missed from now on.
    async fn mark_lost(&mut self) {
        if !matches!(self.connection, ConnectionState::Lost(_)) {
            self.connection = ConnectionState::Lost(Instant::now());
            self.send_event(WatchEvent::Lost).await;
        }
    }

    fn count_failure(&self, failure: &Failure) {
        let reason = failure.reason();
        self.state.update(self.resource.plural(), |kind| *kind.errors.entry(reason).or_default() += 1);
    }

    async fn handle_failure(&mut self, failure: &Failure) {
        self.count_failure(failure);
        if matches!(failure, Failure::Status { code: 401, .. } | Failure::Connection(_)) {
            self.access.renew();
        }
        // After the first failure, the watch resumes at the same version after a short delay. If the second attempt
        // fails, too, this is an outage.
        if self.backoff.has_failed() || self.position.is_none() {
            self.mark_lost().await;
            let text = failure.report(self.verb, self.resource);
            if self.current_error.as_ref() != Some(&text) {
                tracing::error!("{text}");
                self.state.update(self.resource.plural(), |kind| kind.current_error = Some(text.clone()));
                self.current_error = Some(text);
            }
        } else {
            self.connection = ConnectionState::Broken;
            self.send_event(WatchEvent::Broken).await;
            tracing::info!(resource = %self.resource, "{}", failure.report(self.verb, self.resource));
        }
    }

    fn report_recovery(&mut self) {
        if self.current_error.take().is_some() {
            tracing::info!("can {} {} again", self.verb, self.resource);
            self.access.notify_recovered();
            self.recoveries.mark_unchanged();
            self.state.update(self.resource.plural(), |kind| kind.current_error = None);
        }
    }
}

/// Returns how an ERROR event ends a watch. `listing` is true while the watch still sends the full list.
fn error_event_end(status: Status, listing: bool) -> Result<StreamEnd, Failure> {
    match status.code {
        410 => Ok(StreamEnd::Expired(status.message)),
        code if listing && code != 429 => {
            tracing::debug!(code, message = status.message, "no streaming list");
            Ok(StreamEnd::NoStreaming(true))
        }
        code => Err(Failure::Status { code, message: status.message, retry_after: None }),
    }
}

fn invalid_response(error: &serde_json::Error) -> Failure {
    Failure::InvalidResponse(error.to_string())
}
