//! Detects components on this node that conflict with netpol: other policy engines, and CNI plugins that give pods no
//! veth, so that netpol cannot enforce policies on these pods. Runs once a minute on a separate thread. Each conflict
//! is logged once and counted in the metrics. Policies are enforced whether or not there are conflicts.

mod chains;
pub(crate) mod cni;
mod legacy;
mod programs;
mod signatures;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use netpol_api::ConflictStatus;
use netpol_dataplane::ForeignPrograms;

/// The time between two checks.
const INTERVAL: Duration = Duration::from_mins(1);

/// The kind of a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConflictKind {
    /// TC programs of another component on pods' veths.
    Program,
    /// Netfilter chains of another policy engine.
    Chains,
    /// A CNI plugin that enforces policies itself, or that gives pods no veth.
    Cni,
}

impl ConflictKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Program, Self::Chains, Self::Cni];

    /// Returns the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Chains => "chains",
            Self::Cni => "cni",
        }
    }
}

/// The current conflicts, by kind.
#[derive(Debug, Default)]
pub struct Conflicts(Mutex<BTreeMap<ConflictKind, Findings>>);

impl Conflicts {
    /// Returns the number of conflicts of a kind.
    pub fn count(&self, kind: ConflictKind) -> usize {
        self.lock().get(&kind).map_or(0, BTreeMap::len)
    }

    /// Returns all conflicts.
    pub fn all(&self) -> Vec<ConflictStatus> {
        let status = |kind: ConflictKind, (name, finding): (&String, &Finding)| ConflictStatus {
            kind: kind.name().to_owned(),
            name: name.clone(),
            location: finding.location.clone(),
            advice: finding.advice.to_owned(),
        };
        let by_kind = self.lock();
        by_kind.iter().flat_map(|(kind, found)| found.iter().map(|conflict| status(*kind, conflict))).collect()
    }

    /// Replaces the conflicts of a kind.
    fn set(&self, kind: ConflictKind, found: Findings) {
        self.lock().insert(kind, found);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ConflictKind, Findings>> {
        // Each change is one insertion, so the map is consistent even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Conflicts by name. A conflict is new if the previous check did not find its name.
type Findings = BTreeMap<String, Finding>;

/// A conflict, without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// Where the conflict was found.
    location: String,
    /// What the conflicting component does, and what to do about it. Follows "NAME conflicts with netpol: ".
    advice: &'static str,
}

/// Runs the checks.
#[derive(Debug)]
struct Detector {
    programs: ForeignPrograms,
    /// The directory of the CNI configuration.
    cni: PathBuf,
    reporter: ConflictReporter,
}

/// Logs new and resolved conflicts, and stores the current ones in `conflicts`, for metrics and the status.
#[derive(Debug, Default)]
struct ConflictReporter {
    last_found: BTreeMap<ConflictKind, Findings>,
    conflicts: Arc<Conflicts>,
}

/// Starts a thread that checks immediately and then every minute.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(programs: ForeignPrograms, cni: PathBuf) -> io::Result<Arc<Conflicts>> {
    let conflicts = Arc::new(Conflicts::default());
    let reporter = ConflictReporter { last_found: BTreeMap::new(), conflicts: Arc::clone(&conflicts) };
    let mut detector = Detector { programs, cni, reporter };
    thread::Builder::new().name("conflicts".to_owned()).spawn(move || {
        loop {
            detector.detect();
            thread::sleep(INTERVAL);
        }
    })?;
    Ok(conflicts)
}

impl Detector {
    /// Runs all checks once.
    fn detect(&mut self) {
        for kind in ConflictKind::ALL {
            let found = match kind {
                ConflictKind::Program => programs::detect(&self.programs).map_err(|error| error.to_string()),
                ConflictKind::Chains => chains::detect().map_err(|error| error.to_string()),
                ConflictKind::Cni => cni::detect(&self.cni).map_err(|error| error.to_string()),
            };
            match found {
                Ok(found) => self.reporter.report(kind, found),
                // Keep the findings of the last successful check.
                Err(error) => tracing::debug!(kind = kind.name(), error, "cannot check for conflicts; retrying"),
            }
        }
    }
}

impl ConflictReporter {
    /// Logs conflicts that are new or resolved since the last check of this kind, and stores the current ones.
    fn report(&mut self, kind: ConflictKind, found: Findings) {
        let last_found = self.last_found.remove(&kind).unwrap_or_default();
        for (name, Finding { location, advice }) in found.iter().filter(|(name, _)| !last_found.contains_key(*name)) {
            tracing::warn!(kind = kind.name(), conflict = name, location, "{name} conflicts with netpol: {advice}");
        }
        for name in last_found.keys().filter(|name| !found.contains_key(*name)) {
            tracing::info!(kind = kind.name(), conflict = name, "conflict resolved");
        }
        self.conflicts.set(kind, found.clone());
        self.last_found.insert(kind, found);
    }
}

/// Formats up to eight names, and the number of further names.
struct NameList<'a>(&'a [String]);

impl fmt::Display for NameList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", "))?;
        match self.0.len().saturating_sub(8) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    /// Returns what `work` logs.
    fn log(work: impl FnOnce()) -> String {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::clone(&file)).finish();
        tracing::subscriber::with_default(subscriber, work);
        let (mut file, mut text) = (&*file, String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_conflict_is_logged_once_and_when_it_is_resolved() {
        let found = |names: &[&str]| -> Findings {
            let finding =
                |name: &&str| (name.to_string(), Finding { location: "there".into(), advice: "do something" });
            names.iter().map(finding).collect()
        };
        let mut reporter = ConflictReporter::default();
        // Reports the conflicts that one check found. Returns the number of log lines about new and about resolved
        // conflicts, and then the number of current conflicts of this kind.
        let mut report = |kind, names: &[&str]| {
            let log = log(|| reporter.report(kind, found(names)));
            let count = |words: &str| log.lines().filter(|line| line.contains(words)).count();
            let new =
                names.iter().map(|name| count(&format!("{name} conflicts with netpol: do something"))).sum::<usize>();
            ((new, count("conflict resolved")), reporter.conflicts.count(kind))
        };
        assert_eq!(report(ConflictKind::Chains, &["Calico", "Weave"]), ((2, 0), 2));
        assert_eq!(report(ConflictKind::Chains, &["Calico", "Weave"]), ((0, 0), 2), "already logged");
        assert_eq!(report(ConflictKind::Cni, &[]), ((0, 0), 0), "another kind has no conflicts");
        assert_eq!(report(ConflictKind::Chains, &["Calico", "kindnet"]), ((1, 1), 2));
        assert_eq!(report(ConflictKind::Chains, &[]), ((0, 2), 0));
        assert_eq!(report(ConflictKind::Chains, &["Weave"]), ((1, 0), 1), "logged again when it is found again");
        let resolved = log(|| reporter.report(ConflictKind::Chains, Findings::new()));
        assert!(resolved.contains("INFO") && resolved.contains("kind=\"chains\" conflict=\"Weave\""), "{resolved}");
    }

    #[test]
    fn a_long_list_is_shortened_with_the_number_of_other_names() {
        let names: Vec<String> = (0..10).map(|number| format!("veth{number}")).collect();
        assert_eq!(NameList(&names[..2]).to_string(), "veth0, veth1");
        assert!(NameList(&names).to_string().ends_with("veth7 and 2 more"));
    }
}
