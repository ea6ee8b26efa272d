//! What the demo brought into the kernel, and whether it is gone again.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netpol_tests::objects::{self, Kind};
use netpol_tests::{Agent, Cluster};

/// How long the kernel may take: it frees programs and namespaces after a grace period.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) struct Traces {
    agent: u32,
    namespaces: BTreeSet<u64>,
    objects: BTreeSet<(Kind, u32)>,
    paths: [PathBuf; 2],
}

impl Traces {
    /// Notes all of it, while it is there.
    pub(super) fn of(cluster: &Cluster, agent: &Agent) -> Result<Self> {
        let pid = agent.pid().context("the agent runs")?;
        Ok(Self {
            agent: pid,
            namespaces: cluster.inodes()?.into_iter().collect(),
            objects: &objects::held_by(pid)? | &objects::pinned_below(agent.pin_path())?,
            paths: [agent.pin_path().to_owned(), cluster.manifests().path().to_owned()],
        })
    }

    fn count(&self, kind: Kind) -> usize {
        self.objects.iter().filter(|(found, _)| *found == kind).count()
    }

    /// `3 programs, 17 maps, 18 links`.
    pub(super) fn summary(&self) -> String {
        let [programs, maps, links] = [Kind::Program, Kind::Map, Kind::Link].map(|kind| self.count(kind));
        format!("{programs} programs, {maps} maps, {links} links")
    }

    /// What was to be gone, in words.
    pub(super) fn all(&self) -> String {
        format!("{} namespaces, {}, 1 agent, its pins", self.namespaces.len(), self.summary())
    }

    /// What is still there after a while.
    pub(super) fn left(&self) -> Result<Vec<String>> {
        let start = Instant::now();
        loop {
            let left = self.left_now()?;
            if left.is_empty() || start.elapsed() > PATIENCE {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn left_now(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for &(kind, id) in &self.objects {
            if objects::exists(kind, id)? {
                left.push(format!("BPF {kind:?} {id}").to_lowercase());
            }
        }
        left.extend(self.paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
        if Path::new(&format!("/proc/{}", self.agent)).exists() {
            left.push(format!("process {}", self.agent));
        }
        for entry in fs::read_dir("/proc").context("listing processes")?.flatten() {
            // Processes end while we look.
            let inode = fs::metadata(entry.path().join("ns/net")).map(|data| data.ino()).unwrap_or_default();
            if self.namespaces.contains(&inode) {
                left.push(format!("a namespace, in process {}", entry.file_name().to_string_lossy()));
            }
        }
        Ok(left)
    }
}
