//! Responses to watch requests.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::body::{Body, Disconnected, Writer};
use crate::history::Change;
use crate::object::{Form, Object};
use crate::options::StreamingLists;
use crate::resource::Resource;
use crate::route::Target;
use crate::selector::Selector;
use crate::shared::{Shared, State};
use crate::status::Status;

/// Number of bytes after which a part of the initial events (the current objects) is sent.
const PART_SIZE: usize = 64 * 1024;

/// A fault that a test applies to open watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// The next event is cut in the middle, and the connection is closed.
    CutInTheMiddle,
    /// The server sends a line that is not JSON.
    Garbage,
    /// The server sends an ERROR event with this code, and ends the watch.
    Error(u16),
    /// The watch ends normally, as after a timeout.
    End,
    /// The connection is closed.
    Cut,
    /// The server sends no more data, but the connection stays open.
    Hang,
}

struct Watch {
    shared: Arc<Shared>,
    resource: Resource,
    /// The prefix of the keys that the client watches.
    prefix: String,
    selector: Selector,
    /// Whether objects are written whole, or only their metadata.
    form: Form,
    /// Whether the client requested bookmarks.
    bookmarks: bool,
    /// Whether a bookmark marks the end of the initial events.
    marks_initial_end: bool,
    /// All changes up to this version were sent.
    version: u64,
    /// Number of items of [`State::watch_faults`] that this watch has handled.
    faults_handled: usize,
    /// When the watch ends by its timeout.
    end: Instant,
    /// Whether the next event is cut in the middle.
    cut_in_the_middle: bool,
}

/// How a watch ends.
enum WatchEnd {
    /// Normally.
    Normal,
    /// The connection is aborted.
    Aborted,
    /// The server sends no more data, but the connection stays open.
    Silent,
}

impl From<Disconnected> for WatchEnd {
    fn from(_: Disconnected) -> Self {
        Self::Normal
    }
}

/// Events and faults to send next.
struct Pending {
    /// The bytes, version and time of each change.
    events: Vec<(Vec<u8>, u64, std::time::Instant)>,
    faults: Vec<WatchFault>,
    /// The error to send if the store no longer has the changes after [`Watch::version`].
    expired: Option<Status>,
    /// The time between a change and the sending of its event.
    delay: Duration,
}

/// Counts a watch as open until dropped.
struct OpenWatch(Arc<Shared>, Resource);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        if let Some(count) = self.0.lock().open_watches.get_mut(&self.1) {
            *count -= 1;
        }
    }
}

/// Starts a watch. Returns the response body, or an error response.
pub(crate) fn watch(
    shared: &Arc<Shared>,
    target: &Target,
    form: Form,
    cut_in_the_middle: bool,
) -> Result<Body, Status> {
    let selector = target.selector()?;
    let version = target.version()?;
    let timeout = target.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let mut state = shared.lock();
    let streaming_requested = target.flag("sendInitialEvents");
    if streaming_requested && let Some(error) = check_streaming(&state, target)? {
        return Ok(Body::whole(event("ERROR", &error.body)));
    }
    // Without `sendInitialEvents`, a watch starts with the current objects if its version is missing or 0.
    let initial = streaming_requested || (version.unwrap_or(0) == 0 && target.option("sendInitialEvents").is_none());
    let watch = Watch {
        shared: shared.clone(),
        resource: target.resource,
        prefix: target.prefix(),
        selector,
        form,
        bookmarks: target.flag("allowWatchBookmarks"),
        marks_initial_end: state.streaming != StreamingLists::Ignored,
        version: version.unwrap_or_else(|| state.store.version()),
        faults_handled: state.watch_faults.len(),
        end: Instant::now() + timeout.unwrap_or(state.watch_timeout),
        cut_in_the_middle,
    };
    *state.open_watches.entry(target.resource).or_default() += 1;
    let open = OpenWatch(shared.clone(), target.resource);
    let changed = shared.changed.subscribe();
    drop(state);
    let (writer, body) = Body::parts(shared.clone());
    tokio::spawn(async move {
        let _open = open;
        watch.run(writer, initial, changed).await;
    });
    Ok(body)
}

/// Checks whether the server supports watches that start with the current objects (streaming lists). `Err` is
/// sent as an error response. `Ok(Some(_))` is an error that is sent as an event in the stream.
fn check_streaming(state: &State, target: &Target) -> Result<Option<Status>, Status> {
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
        let end = match self.send_until_end(&writer, initial, &mut changed).await {
            Ok(()) => WatchEnd::Normal,
            Err(end) => end,
        };
        match end {
            WatchEnd::Normal => {}
            WatchEnd::Aborted => writer.abort().await,
            WatchEnd::Silent => writer.disconnected().await,
        }
    }

    /// Sends events until the watch ends. If `initial` is set, sends the current objects first.
    async fn send_until_end(
        &mut self,
        writer: &Writer,
        initial: bool,
        changed: &mut watch::Receiver<()>,
    ) -> Result<(), WatchEnd> {
        if initial {
            self.send_initial_events(writer).await?;
        }
        let bookmark_every = self.shared.lock().bookmark_every;
        // The version of the last bookmark; at first, the version from which the client watches. `None`: the client has
        // no version yet, because no bookmark marked the end of the initial events.
        let mut bookmarked = (!initial || self.marks_initial_end).then_some(self.version);
        let mut next_bookmark = Instant::now() + bookmark_every;
        loop {
            // Marks earlier changes as seen. A change during `send` ends the `select!` below at once.
            changed.borrow_and_update();
            let pending = self.take_pending();
            self.send(writer, pending).await?;
            tokio::select! {
                biased;
                () = writer.disconnected() => return Ok(()),
                _ = changed.changed() => {}
                () = sleep_until(self.end) => {
                    if self.bookmarks {
                        writer.write(self.bookmark(false), None).await?;
                    }
                    return Ok(());
                }
                () = sleep_until(next_bookmark) => {
                    next_bookmark = Instant::now() + bookmark_every;
                    if self.bookmarks && bookmarked != Some(self.version) {
                        bookmarked = Some(self.version);
                        writer.write(self.bookmark(false), None).await?;
                    }
                }
            }
        }
    }

    /// Sends the current objects as ADDED events.
    async fn send_initial_events(&mut self, writer: &Writer) -> Result<(), WatchEnd> {
        let (objects, version) = {
            let state = self.shared.lock();
            let version = state.store.version();
            let objects = state.store.at(self.resource, version, &self.prefix, "").unwrap_or_default();
            let objects = objects.into_iter().filter(|object| self.selector.matches(object));
            (objects.cloned().collect::<Vec<_>>(), version)
        };
        // The initial objects must not be older than the requested version. A real server waits until its cache has
        // this version. Here the version may never exist, so nothing is sent.
        if self.version > version {
            return Err(WatchEnd::Silent);
        }
        self.version = version;
        let mut out = Vec::new();
        for object in objects {
            let bytes = self.event("ADDED", &object, object.version);
            self.write_half_if_injected(writer, &bytes).await?;
            out.extend_from_slice(&bytes);
            if out.len() >= PART_SIZE {
                self.shared.throttle().await;
                writer.write(std::mem::take(&mut out), None).await?;
            }
        }
        if self.bookmarks && self.marks_initial_end {
            out.extend_from_slice(&self.bookmark(true));
        }
        if !out.is_empty() {
            writer.write(out, None).await?;
        }
        Ok(())
    }

    /// Returns the events and faults that were not handled yet, and marks them as handled.
    fn take_pending(&mut self) -> Pending {
        let state = self.shared.lock();
        let faults = state.watch_faults[self.faults_handled..].iter();
        let faults = faults
            .filter(|(resource, _)| resource.is_none_or(|resource| resource == self.resource))
            .map(|(_, fault)| *fault);
        let mut pending = Pending { events: Vec::new(), faults: faults.collect(), expired: None, delay: state.delay };
        let fault_count = state.watch_faults.len();
        match state.store.since(self.resource, self.version) {
            Ok(changes) => {
                pending.events = changes.iter().filter_map(|change| self.event_of(change)).collect();
                // A watch from a future version gets no events up to that version.
                self.version = self.version.max(state.store.version());
            }
            Err(old) => pending.expired = Some(Status::expired_watch(self.version, old.oldest)),
        }
        drop(state);
        self.faults_handled = fault_count;
        pending
    }

    /// Returns the bytes, version and time of the event for a change, if the watch selects the object before or after
    /// the change.
    fn event_of(&self, change: &Change) -> Option<(Vec<u8>, u64, std::time::Instant)> {
        let is_selected = |object: &&Arc<Object>| object.key.starts_with(&self.prefix) && self.selector.matches(object);
        let (before, after) = (change.before.as_ref().filter(is_selected), change.after.as_ref().filter(is_selected));
        let (event_type, object) = match (before, after) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        Some((self.event(event_type, object, change.version), change.version, change.at))
    }

    async fn send(&mut self, writer: &Writer, pending: Pending) -> Result<(), WatchEnd> {
        for fault in pending.faults {
            match fault {
                WatchFault::CutInTheMiddle => self.cut_in_the_middle = true,
                WatchFault::Garbage => writer.write(b"\xff\xfe garbage {\"type\":\n".to_vec(), None).await?,
                WatchFault::Error(code) => {
                    writer.write(event("ERROR", &Status::injected(code, None).body), None).await?;
                    return Err(WatchEnd::Normal);
                }
                WatchFault::End => return Err(WatchEnd::Normal),
                WatchFault::Cut => return Err(WatchEnd::Aborted),
                WatchFault::Hang => return Err(WatchEnd::Silent),
            }
        }
        if let Some(status) = pending.expired {
            writer.write(event("ERROR", &status.body), None).await?;
            return Err(WatchEnd::Normal);
        }
        for (bytes, version, at) in pending.events {
            if !pending.delay.is_zero() {
                sleep_until(Instant::from_std(at + pending.delay)).await;
            }
            self.shared.throttle().await;
            self.write_half_if_injected(writer, &bytes).await?;
            writer.write(bytes, Some(version)).await?;
        }
        Ok(())
    }

    /// If `cut_in_the_middle` is set, sends only half of an event and ends the watch.
    async fn write_half_if_injected(&self, writer: &Writer, bytes: &[u8]) -> Result<(), WatchEnd> {
        if self.cut_in_the_middle {
            writer.write(bytes[..bytes.len() / 2].to_vec(), None).await?;
            return Err(WatchEnd::Aborted);
        }
        Ok(())
    }

    fn event(&self, event_type: &str, object: &Object, version: u64) -> Vec<u8> {
        let mut out = format!("{{\"type\":\"{event_type}\",\"object\":").into_bytes();
        object.write(&mut out, version, self.form);
        out.extend_from_slice(b"}\n");
        out
    }

    /// Returns a bookmark. If `ends_initial_events` is set, the bookmark marks the end of the initial events. Clients
    /// use only the version of the object in a bookmark. The object's other fields are those that Go serializes for an
    /// empty object.
    fn bookmark(&self, ends_initial_events: bool) -> Vec<u8> {
        let end = if ends_initial_events { ",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}" } else { "" };
        let (kind, api_version, rest) = match self.form {
            Form::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1", ""),
            Form::Item | Form::Whole => {
                (self.resource.kind(), self.resource.api_version(), empty_members(self.resource))
            }
        };
        let version = self.version;
        let metadata = format!("{{\"resourceVersion\":\"{version}\"{end}}}");
        let object = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata}{rest}}}");
        format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").into_bytes()
    }
}

/// Returns the members of an object that Go serializes even if they are empty.
const fn empty_members(resource: Resource) -> &'static str {
    match resource {
        Resource::Pods => ",\"spec\":{\"containers\":null},\"status\":{}",
        Resource::Namespaces => ",\"spec\":{},\"status\":{}",
        Resource::Nodes => ",\"spec\":{},\"status\":{\"daemonEndpoints\":{\"kubeletEndpoint\":{\"Port\":0}}}",
        Resource::Services => ",\"spec\":{},\"status\":{\"loadBalancer\":{}}",
        Resource::CoreEvents => ",\"involvedObject\":{},\"source\":{},\"eventTime\":null",
        Resource::Events => ",\"eventTime\":null",
        Resource::NetworkPolicies => ",\"spec\":{\"podSelector\":{}}",
        Resource::EndpointSlices => ",\"addressType\":\"\",\"endpoints\":null,\"ports\":null",
        Resource::Deployments
        | Resource::ReplicaSets
        | Resource::StatefulSets
        | Resource::DaemonSets
        | Resource::Jobs
        | Resource::CronJobs
        | Resource::ReplicationControllers
        | Resource::CiliumNetworkPolicies => ",\"spec\":{}",
    }
}

fn event(event_type: &str, object: &Value) -> Vec<u8> {
    format!("{{\"type\":\"{event_type}\",\"object\":{object}}}\n").into_bytes()
}
