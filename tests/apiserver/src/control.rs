//! Functions with which tests control a fake API server. A version is the number in an object's `resourceVersion`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::auth::Rules;
use crate::exec::{Exec, ExecRequest, Handler};
use crate::faults::{Fault, FaultId};
use crate::log::Request;
use crate::mirror::{Mirror, MirrorError};
use crate::options::StreamingLists;
use crate::resource::{Resource, Verb};
use crate::server::ApiServer;
use crate::store::{Applied, ApplyError, Backup, key_of};
use crate::watch::WatchFault;

/// Objects.
impl ApiServer {
    /// Creates or replaces an object. Without a namespace, the object is created in `default`.
    ///
    /// # Errors
    /// If the object is incomplete, or its resource is not served.
    pub fn apply(&self, object: Value) -> Result<Applied, ApplyError> {
        self.shared.change(|state| state.store.apply(object))
    }

    /// Deletes an object immediately. Returns the version of this change, if the object existed. For a cluster-scoped
    /// object, `namespace` is empty.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Option<u64> {
        self.shared.change(|state| state.store.delete(resource, &key_of(namespace, name)))
    }

    /// Returns the current object.
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        self.shared.lock().store.get(resource, &key_of(namespace, name)).map(|object| object.value())
    }

    /// Returns all objects of a resource, ordered by namespace and name.
    pub fn all(&self, resource: Resource) -> Vec<Value> {
        let state = self.shared.lock();
        let objects = state.store.at(resource, state.store.version(), "", "").unwrap_or_default();
        objects.into_iter().map(|object| object.value()).collect()
    }

    /// Returns the Events that clients wrote, of both API groups.
    pub fn events(&self) -> Vec<Value> {
        let mut events = self.all(Resource::Events);
        events.extend(self.all(Resource::CoreEvents));
        events
    }

    /// Returns the version of the last change.
    pub fn version(&self) -> u64 {
        self.shared.lock().store.version()
    }

    /// Keeps the server's objects equal to the manifests of a directory, until the returned value is dropped.
    ///
    /// # Errors
    /// If the directory cannot be watched.
    pub fn mirror(&self, directory: &Path) -> Result<Mirror, MirrorError> {
        Mirror::start(self.shared.clone(), directory)
    }

    /// Returns a copy of all objects and of the current version, for [`Self::restore`].
    pub fn backup(&self) -> Backup {
        self.shared.lock().store.backup()
    }

    /// Restores a backup: versions go back to those of the backup, as when etcd is restored. Closes all connections, as
    /// a server restart does.
    pub fn restore(&self, backup: Backup) {
        self.shared.change(|state| {
            state.store.restore(backup);
            state.sent.clear();
        });
        self.disconnect();
    }

    /// Keeps all objects, but assigns new versions to them. Counts from `start`, so the first new version is `start +
    /// 1`. In a real cluster, this happens when its storage is replaced. Closes all connections.
    pub fn renumber(&self, start: u64) {
        self.shared.change(|state| {
            state.store.renumber(start);
            state.sent.clear();
        });
        self.disconnect();
    }

    /// Removes the history of all changes so far. A watch that starts from an older version gets status 410.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.compact());
    }
}

/// Commands in pods (`pods/exec`).
impl ApiServer {
    /// Sets the function that handles commands in pods. Without a handler, each command fails.
    pub fn on_exec(&self, handler: impl Fn(&ExecRequest) -> Exec + Send + Sync + 'static) {
        self.shared.lock().exec = Some(Handler::new(handler));
    }
}

/// Requests and watches.
impl ApiServer {
    /// Returns all requests so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Returns the time at which the watch event of the change with this version was first written to a socket. `None`
    /// if the event was not sent yet.
    pub fn sent_at(&self, version: u64) -> Option<Instant> {
        self.shared.lock().sent.get(&version).copied()
    }

    /// Returns the number of open watches on a resource.
    pub fn open_watches(&self, resource: Resource) -> usize {
        self.shared.lock().open_watches.get(&resource).copied().unwrap_or(0)
    }
}

/// Credentials and permissions.
impl ApiServer {
    /// Returns the server's URL.
    pub fn url(&self) -> String {
        self.shared.lock().credentials.url().to_owned()
    }

    /// Returns the newest bearer token.
    pub fn token(&self) -> String {
        self.shared.lock().credentials.newest().to_owned()
    }

    /// Writes the files of a service account as they are mounted in pods (`ca.crt`, `token`, `namespace`), and a
    /// `kubeconfig`. Returns the path of the kubeconfig.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn write_credentials(&self, directory: &Path) -> io::Result<PathBuf> {
        self.shared.lock().credentials.write(directory)
    }

    /// Issues a new token and writes it to all directories that contain the old token. The old token stays valid.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn rotate_token(&self) -> io::Result<()> {
        self.shared.lock().credentials.rotate()
    }

    /// Accepts only the newest token from now on. Open watches stay open, as with a real server.
    pub fn expire_old_tokens(&self) {
        self.shared.lock().credentials.expire_old();
    }

    /// Replaces the permissions of the client. Open watches stay open, as with a real server.
    pub fn set_rules(&self, rules: Rules) {
        self.shared.lock().rules = rules;
    }

    /// Ends the open watches that the current permissions do not allow.
    pub fn end_forbidden_watches(&self) {
        self.shared.change(|state| {
            let forbidden = Resource::ALL.into_iter().filter(|resource| !state.rules.allows(Verb::Watch, *resource));
            let faults: Vec<_> = forbidden.map(|resource| (Some(resource), WatchFault::End)).collect();
            state.watch_faults.extend(faults);
        });
    }
}

/// Faults.
impl ApiServer {
    /// Applies a fault to requests from now on.
    pub fn inject(&self, fault: Fault) -> FaultId {
        self.shared.lock().faults.inject(fault)
    }

    /// Removes a fault.
    pub fn withdraw(&self, fault: FaultId) {
        self.shared.lock().faults.withdraw(fault);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// Applies a fault once to the open watches of a resource. `None` means all resources.
    pub fn inject_watch_fault(&self, resource: Option<Resource>, fault: WatchFault) {
        self.shared.change(|state| state.watch_faults.push((resource, fault)));
    }

    /// Delays each watch event: it is sent this long after its change.
    pub fn delay_events(&self, time: Duration) {
        self.shared.lock().delay = time;
    }

    /// Changes how watches with `sendInitialEvents` (watches that request an initial list) are served.
    pub fn set_streaming_lists(&self, streaming: StreamingLists) {
        self.shared.lock().streaming = streaming;
    }
}
