//! Kernel objects, files and processes that the demo creates, and whether they are gone at its end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netpol_tests::objects::{self, ObjectKind};
use netpol_tests::{Agent, Cluster};

/// How long the kernel may take to free everything: programs and namespaces are freed after an RCU grace period.
const WAIT_LIMIT: Duration = Duration::from_secs(3);

pub(super) struct Inventory {
    agent_pid: u32,
    /// The inodes of the network namespaces.
    namespaces: BTreeSet<u64>,
    /// Kinds and IDs of the agent's BPF objects.
    bpf_objects: BTreeSet<(ObjectKind, u32)>,
    /// The directories of the agent's pins and of the manifests.
    paths: [PathBuf; 2],
}

impl Inventory {
    /// Lists everything that exists while the demo runs.
    pub(super) fn list(cluster: &Cluster, agent: &Agent) -> Result<Self> {
        let agent_pid = agent.pid().context("the agent is not running")?;
        Ok(Self {
            agent_pid,
            namespaces: cluster.inodes()?.into_iter().collect(),
            bpf_objects: &objects::held_by(agent_pid)? | &objects::pinned_below(agent.pin_path())?,
            paths: [agent.pin_path().to_owned(), cluster.manifests().path().to_owned()],
        })
    }

    fn count(&self, kind: ObjectKind) -> usize {
        self.bpf_objects.iter().filter(|(found, _)| *found == kind).count()
    }

    /// Returns the numbers of BPF objects: for example, `3 programs, 17 maps, 18 links`.
    pub(super) fn summary(&self) -> String {
        let [programs, maps, links] =
            [ObjectKind::Program, ObjectKind::Map, ObjectKind::Link].map(|kind| self.count(kind));
        format!("{programs} programs, {maps} maps, {links} links")
    }

    /// Describes everything that was created.
    pub(super) fn description(&self) -> String {
        format!("{} network namespaces, {}, 1 agent with pinned objects", self.namespaces.len(), self.summary())
    }

    /// Waits until everything is gone, for at most [`WAIT_LIMIT`], and returns what still exists.
    pub(super) fn remaining(&self) -> Result<Vec<String>> {
        let start = Instant::now();
        loop {
            let remaining = self.remaining_now()?;
            if remaining.is_empty() || start.elapsed() > WAIT_LIMIT {
                return Ok(remaining);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn remaining_now(&self) -> Result<Vec<String>> {
        let mut remaining = Vec::new();
        for &(kind, id) in &self.bpf_objects {
            if objects::exists(kind, id)? {
                remaining.push(format!("BPF {kind:?} {id}").to_lowercase());
            }
        }
        remaining.extend(self.paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
        if Path::new(&format!("/proc/{}", self.agent_pid)).exists() {
            remaining.push(format!("process {}", self.agent_pid));
        }
        for entry in fs::read_dir("/proc").context("listing processes")?.flatten() {
            // Entries that are no processes, and processes that have ended since `/proc` was listed, get the inode 0,
            // which no namespace has.
            let inode = fs::metadata(entry.path().join("ns/net")).map(|data| data.ino()).unwrap_or_default();
            if self.namespaces.contains(&inode) {
                remaining.push(format!("a network namespace, used by process {}", entry.file_name().to_string_lossy()));
            }
        }
        Ok(remaining)
    }
}
