//! What tests do to a server.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::auth::Rules;
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
    /// Creates an object or replaces it. Without a namespace, it is in `default`.
    ///
    /// # Errors
    /// Where it is no object, or none of a resource that is served.
    pub fn apply(&self, object: Value) -> Result<Applied, ApplyError> {
        self.shared.change(|state| state.store.apply(object))
    }

    /// Deletes an object at once; the version of its end, where there was one. The namespace of a cluster's own is empty.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Option<u64> {
        self.shared.change(|state| state.store.delete(resource, &key_of(namespace, name)))
    }

    /// An object as it is kept.
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        self.shared.lock().store.get(resource, &key_of(namespace, name)).map(|object| object.value())
    }

    /// All objects of a resource, by namespace and name.
    pub fn all(&self, resource: Resource) -> Vec<Value> {
        let state = self.shared.lock();
        let objects = state.store.at(resource, state.store.version(), "", "").unwrap_or_default();
        objects.into_iter().map(|object| object.value()).collect()
    }

    /// The events that clients wrote, of both API groups.
    pub fn events(&self) -> Vec<Value> {
        let mut events = self.all(Resource::Events);
        events.extend(self.all(Resource::CoreEvents));
        events
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.shared.lock().store.version()
    }

    /// Follows a directory of manifests for as long as what is returned lives.
    ///
    /// # Errors
    /// Where the directory cannot be watched.
    pub fn mirror(&self, directory: &Path) -> Result<Mirror, MirrorError> {
        Mirror::start(self.shared.clone(), directory)
    }

    /// Everything there is.
    pub fn backup(&self) -> Backup {
        self.shared.lock().store.backup()
    }

    /// Goes back to what there was, versions included, as when etcd is restored from a backup. Cuts all connections, as
    /// restarting a server does.
    pub fn restore(&self, backup: Backup) {
        self.shared.change(|state| {
            state.store.restore(backup);
            state.sent.clear();
        });
        self.disconnect();
    }

    /// Keeps all objects, with versions that count from another one, as when a cluster's storage is replaced. Cuts all
    /// connections.
    pub fn renumber(&self, first_version: u64) {
        self.shared.change(|state| {
            state.store.renumber(first_version);
            state.sent.clear();
        });
        self.disconnect();
    }

    /// Forgets all changes up to now: whoever wants to go on from an older version gets 410.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.compact());
    }
}

/// What was asked and told.
impl ApiServer {
    /// Requests so far, the oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// When the event of a change was handed over to a socket first; none as long as it was not.
    pub fn sent_at(&self, version: u64) -> Option<Instant> {
        self.shared.lock().sent.get(&version).copied()
    }

    /// Watches of a resource that are open.
    pub fn open_watches(&self, resource: Resource) -> usize {
        self.shared.lock().open.get(&resource).copied().unwrap_or(0)
    }
}

/// Credentials and permissions.
impl ApiServer {
    /// Its URL.
    pub fn url(&self) -> String {
        self.shared.lock().credentials.url().to_owned()
    }

    /// The bearer token that is newest.
    pub fn token(&self) -> String {
        self.shared.lock().credentials.newest().to_owned()
    }

    /// Fills a directory as pods find it of their service account (`ca.crt`, `token`, `namespace`), with a `kubeconfig` beside,
    /// whose path is returned.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_credentials(&self, directory: &Path) -> io::Result<PathBuf> {
        self.shared.lock().credentials.write(directory)
    }

    /// Writes a new token wherever the old one was written. The old one stays good.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn rotate_token(&self) -> io::Result<()> {
        self.shared.lock().credentials.rotate()
    }

    /// Takes no token but the newest from now on. Watches that are open stay open, as with a real server.
    pub fn expire_old_tokens(&self) {
        self.shared.lock().credentials.expire_old();
    }

    /// Changes what the user may do. Watches that are open stay open, as with a real server.
    pub fn set_rules(&self, rules: Rules) {
        self.shared.lock().rules = rules;
    }

    /// Ends those open watches that would not be allowed now.
    pub fn end_forbidden_watches(&self) {
        self.shared.change(|state| {
            let forbidden = Resource::ALL.into_iter().filter(|resource| !state.rules.allows(Verb::Watch, *resource));
            let ends: Vec<_> = forbidden.map(|resource| (Some(resource), WatchFault::End)).collect();
            state.spoiled.extend(ends);
        });
    }
}

/// Faults.
impl ApiServer {
    /// Lets a fault meet requests from now on.
    pub fn inject(&self, fault: Fault) -> FaultId {
        self.shared.lock().faults.inject(fault)
    }

    /// Takes a fault back.
    pub fn withdraw(&self, fault: FaultId) {
        self.shared.lock().faults.withdraw(fault);
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// Does something to the watches that are open, of one resource or of all.
    pub fn watch_fault(&self, resource: Option<Resource>, fault: WatchFault) {
        self.shared.change(|state| state.spoiled.push((resource, fault)));
    }

    /// Holds events back for this long after their change.
    pub fn delay_events(&self, time: Duration) {
        self.shared.lock().delay = time;
    }

    /// Changes what becomes of watches that ask for a list first.
    pub fn set_streaming_lists(&self, streaming: StreamingLists) {
        self.shared.lock().streaming = streaming;
    }
}
