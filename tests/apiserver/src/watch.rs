//! Collections, and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::body::{Body, Gone, Writer};
use crate::history::Change;
use crate::object::{Form, Object};
use crate::options::StreamingLists;
use crate::resource::Resource;
use crate::route::Target;
use crate::selector::Selector;
use crate::shared::{Shared, State};
use crate::status::Status;

/// Bytes of initial events sent at a time.
const PART: usize = 64 * 1024;

/// What a test does to watches that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// The next event ends in the middle of its bytes, and so does the connection.
    Tear,
    /// A line that is no JSON.
    Garbage,
    /// An ERROR event with this code, and the end.
    Error(u16),
    /// An ordinary end, as after a timeout.
    End,
    /// The connection is cut.
    Cut,
    /// Nothing more comes, over a connection that stays.
    Hang,
}

struct Watch {
    shared: Arc<Shared>,
    resource: Resource,
    prefix: String,
    selector: Selector,
    form: Form,
    bookmarks: bool,
    /// Whether the end of the initial objects is told.
    ends: bool,
    /// What was told up to here.
    version: u64,
    /// What of [`State::spoiled`] was seen.
    spoiled: usize,
    end: Instant,
    tear: bool,
}

/// Why a watch ends.
enum End {
    /// As it should.
    Orderly,
    /// In the middle.
    Torn,
    /// Nothing more is to come, yet it stays.
    Silent,
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Orderly
    }
}

/// What is to be told at one time.
struct News {
    events: Vec<(Vec<u8>, u64, std::time::Instant)>,
    faults: Vec<WatchFault>,
    expired: Option<Status>,
    delay: Duration,
}

/// Counts open watches.
struct Open(Arc<Shared>, Resource);

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(count) = self.0.lock().open.get_mut(&self.1) {
            *count -= 1;
        }
    }
}

pub(crate) fn watch(shared: &Arc<Shared>, target: &Target, form: Form, tear: bool) -> Result<Body, Status> {
    let selector = target.selector()?;
    let version = target.version()?;
    let timeout = target.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let mut state = shared.lock();
    let asked = target.flag("sendInitialEvents");
    if asked && let Some(error) = streaming(&state, target)? {
        return Ok(Body::whole(event("ERROR", &error.body)));
    }
    // A watch from no version in particular has always begun with what there is.
    let initial = asked || (version.unwrap_or(0) == 0 && target.option("sendInitialEvents").is_none());
    let watch = Watch {
        shared: shared.clone(),
        resource: target.resource,
        prefix: target.prefix(),
        selector,
        form,
        bookmarks: target.flag("allowWatchBookmarks"),
        ends: state.streaming != StreamingLists::Ignored,
        version: version.unwrap_or_else(|| state.store.version()),
        spoiled: state.spoiled.len(),
        end: Instant::now() + timeout.unwrap_or(state.watch_timeout),
        tear,
    };
    *state.open.entry(target.resource).or_default() += 1;
    let open = Open(shared.clone(), target.resource);
    let changed = shared.changed.subscribe();
    drop(state);
    let (writer, body) = Body::parts(shared.clone());
    tokio::spawn(async move {
        let _open = open;
        watch.run(writer, initial, changed).await;
    });
    Ok(body)
}

/// Whether a streaming list may be had; an error of the second kind comes within the stream.
fn streaming(state: &State, target: &Target) -> Result<Option<Status>, Status> {
    match state.streaming {
        StreamingLists::Forbidden => {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            Err(Status::forbidden_option("sendInitialEvents", why))
        }
        StreamingLists::Served | StreamingLists::NoStorageSupport
            if target.option("resourceVersionMatch") != Some("NotOlderThan") =>
        {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            Err(Status::forbidden_option("resourceVersionMatch", why))
        }
        StreamingLists::Served | StreamingLists::Ignored => Ok(None),
        StreamingLists::NoStorageSupport => Ok(Some(Status::no_streaming_storage())),
    }
}

impl Watch {
    async fn run(mut self, writer: Writer, initial: bool, mut changed: watch::Receiver<()>) {
        let end = match self.tell(&writer, initial, &mut changed).await {
            Ok(()) => End::Orderly,
            Err(end) => end,
        };
        match end {
            End::Orderly => {}
            End::Torn => writer.tear().await,
            End::Silent => writer.gone().await,
        }
    }

    async fn tell(&mut self, writer: &Writer, initial: bool, changed: &mut watch::Receiver<()>) -> Result<(), End> {
        if initial {
            self.initial(writer).await?;
        }
        let (every, mut told) = (self.shared.lock().bookmark_every, self.version);
        let mut bookmark = Instant::now() + every;
        loop {
            changed.borrow_and_update();
            let news = self.look();
            self.send(writer, news).await?;
            tokio::select! {
                biased;
                () = writer.gone() => return Ok(()),
                _ = changed.changed() => {}
                () = sleep_until(self.end) => {
                    if self.bookmarks {
                        writer.write(self.bookmark(false), None).await?;
                    }
                    return Ok(());
                }
                () = sleep_until(bookmark) => {
                    bookmark = Instant::now() + every;
                    if self.bookmarks && self.version != told {
                        told = self.version;
                        writer.write(self.bookmark(false), None).await?;
                    }
                }
            }
        }
    }

    /// What there is, as if it had just been made.
    async fn initial(&mut self, writer: &Writer) -> Result<(), End> {
        let (objects, version) = {
            let state = self.shared.lock();
            let version = state.store.version();
            let objects = state.store.at(self.resource, version, &self.prefix, "").unwrap_or_default();
            let objects = objects.into_iter().filter(|object| self.selector.matches(object));
            (objects.cloned().collect::<Vec<_>>(), version)
        };
        // A list may not be older than what was asked for; a real server waits for its cache, in vain here.
        if self.version > version {
            return Err(End::Silent);
        }
        self.version = version;
        let mut out = Vec::new();
        for object in objects {
            let bytes = self.event("ADDED", &object, object.version);
            self.torn(writer, &bytes).await?;
            out.extend_from_slice(&bytes);
            if out.len() >= PART {
                self.shared.pace().await;
                writer.write(std::mem::take(&mut out), None).await?;
            }
        }
        if self.bookmarks && self.ends {
            out.extend_from_slice(&self.bookmark(true));
        }
        if !out.is_empty() {
            writer.write(out, None).await?;
        }
        Ok(())
    }

    fn look(&mut self) -> News {
        let state = self.shared.lock();
        let faults = state.spoiled[self.spoiled..].iter();
        let faults = faults.filter(|(what, _)| what.is_none_or(|what| what == self.resource)).map(|(_, fault)| *fault);
        let mut news = News { events: Vec::new(), faults: faults.collect(), expired: None, delay: state.delay };
        let seen = state.spoiled.len();
        match state.store.since(self.resource, self.version) {
            Ok(changes) => {
                news.events = changes.iter().filter_map(|change| self.change(change)).collect();
                // Whoever begins in the future hears nothing until then.
                self.version = self.version.max(state.store.version());
            }
            Err(old) => news.expired = Some(Status::expired_watch(self.version, old.oldest)),
        }
        drop(state);
        self.spoiled = seen;
        news
    }

    fn change(&self, change: &Change) -> Option<(Vec<u8>, u64, std::time::Instant)> {
        let seen = |object: &&Arc<Object>| object.key.starts_with(&self.prefix) && self.selector.matches(object);
        let (before, after) = (change.before.as_ref().filter(seen), change.after.as_ref().filter(seen));
        let (what, object) = match (before, after) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        Some((self.event(what, object, change.version), change.version, change.at))
    }

    async fn send(&mut self, writer: &Writer, news: News) -> Result<(), End> {
        for fault in news.faults {
            match fault {
                WatchFault::Tear => self.tear = true,
                WatchFault::Garbage => writer.write(b"\xff\xfe garbage {\"type\":\n".to_vec(), None).await?,
                WatchFault::Error(code) => {
                    writer.write(event("ERROR", &Status::injected(code, None).body), None).await?;
                    return Err(End::Orderly);
                }
                WatchFault::End => return Err(End::Orderly),
                WatchFault::Cut => return Err(End::Torn),
                WatchFault::Hang => return Err(End::Silent),
            }
        }
        if let Some(status) = news.expired {
            writer.write(event("ERROR", &status.body), None).await?;
            return Err(End::Orderly);
        }
        for (bytes, version, at) in news.events {
            if !news.delay.is_zero() {
                sleep_until(Instant::from_std(at + news.delay)).await;
            }
            self.shared.pace().await;
            self.torn(writer, &bytes).await?;
            writer.write(bytes, Some(version)).await?;
        }
        Ok(())
    }

    /// Sends half of an event, where that is to be all.
    async fn torn(&self, writer: &Writer, bytes: &[u8]) -> Result<(), End> {
        if self.tear {
            writer.write(bytes[..bytes.len() / 2].to_vec(), None).await?;
            return Err(End::Torn);
        }
        Ok(())
    }

    fn event(&self, what: &str, object: &Object, version: u64) -> Vec<u8> {
        let mut out = format!("{{\"type\":\"{what}\",\"object\":").into_bytes();
        object.write(&mut out, version, self.form);
        out.extend_from_slice(b"}\n");
        out
    }

    /// An object of which only the version means anything; the rest is what Go writes of an empty one.
    fn bookmark(&self, initial: bool) -> Vec<u8> {
        let end = if initial { ",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}" } else { "" };
        let (kind, api_version, rest) = match self.form {
            Form::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1", ""),
            Form::Item | Form::Whole => (self.resource.kind(), self.resource.api_version(), empty(self.resource)),
        };
        let version = self.version;
        let metadata = format!("{{\"resourceVersion\":\"{version}\"{end}}}");
        let object = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata}{rest}}}");
        format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").into_bytes()
    }
}

/// Members of an object that Go writes even if there is nothing in them.
const fn empty(resource: Resource) -> &'static str {
    match resource {
        Resource::Pods => ",\"spec\":{\"containers\":null},\"status\":{}",
        Resource::Namespaces => ",\"spec\":{},\"status\":{}",
        Resource::Nodes => ",\"spec\":{},\"status\":{\"daemonEndpoints\":{\"kubeletEndpoint\":{\"Port\":0}}}",
        Resource::Services => ",\"spec\":{},\"status\":{\"loadBalancer\":{}}",
        Resource::CoreEvents => ",\"involvedObject\":{},\"source\":{},\"eventTime\":null",
        Resource::Events => ",\"eventTime\":null",
        Resource::NetworkPolicies => ",\"spec\":{\"podSelector\":{}}",
        Resource::EndpointSlices => ",\"addressType\":\"\",\"endpoints\":null,\"ports\":null",
    }
}

fn event(what: &str, object: &Value) -> Vec<u8> {
    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n").into_bytes()
}
