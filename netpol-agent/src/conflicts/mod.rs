//! Who else enforces on this node, or keeps netpol from it: looked for once a minute on a thread of its own, said once,
//! counted in the metrics. netpol enforces all the same.

mod chains;
mod cni;
mod known;
mod legacy;
mod programs;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::dataplane::ForeignPrograms;

/// From one look to the next.
const INTERVAL: Duration = Duration::from_mins(1);

/// What kind of thing is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Somebody else's TC programs on pods' veths.
    Program,
    /// Netfilter chains of another enforcer.
    Chains,
    /// The CNI plugin.
    Cni,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Program, Self::Chains, Self::Cni];

    /// As the metric's label has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Chains => "chains",
            Self::Cni => "cni",
        }
    }
}

/// How many there are now, by kind.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; Kind::ALL.len()]);

impl Counts {
    /// Of this kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    fn set(&self, kind: Kind, count: usize) {
        self.0[kind as usize].store(count as u64, Ordering::Relaxed);
    }
}

/// By what is in the way: where, and what to do. The former is what two looks are compared by.
type Found = BTreeMap<String, Place>;

/// Where something is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    place: String,
    advice: &'static str,
}

/// What is looked at.
#[derive(Debug)]
struct Looker {
    programs: ForeignPrograms,
    cni: PathBuf,
    told: Told,
}

/// What the log and the counts have of it.
#[derive(Debug, Default)]
struct Told {
    before: BTreeMap<Kind, Found>,
    counts: Arc<Counts>,
}

/// Looks at once, and from then on every minute, for as long as the process lives.
///
/// # Errors
/// Where no thread can be started.
pub fn start(programs: ForeignPrograms, cni: PathBuf) -> io::Result<Arc<Counts>> {
    let counts = Arc::new(Counts::default());
    let told = Told { before: BTreeMap::new(), counts: Arc::clone(&counts) };
    let mut looker = Looker { programs, cni, told };
    thread::Builder::new().name("conflicts".to_owned()).spawn(move || {
        loop {
            looker.look();
            thread::sleep(INTERVAL);
        }
    })?;
    Ok(counts)
}

impl Looker {
    fn look(&mut self) {
        for kind in Kind::ALL {
            let found = match kind {
                Kind::Program => programs::look(&self.programs).map_err(|error| error.to_string()),
                Kind::Chains => chains::look().map_err(|error| error.to_string()),
                Kind::Cni => cni::look(&self.cni).map_err(|error| error.to_string()),
            };
            match found {
                Ok(found) => self.told.tell(kind, found),
                // What was known stays known.
                Err(error) => tracing::debug!(kind = kind.name(), error, "cannot look for conflicts; tried again"),
            }
        }
    }
}

impl Told {
    fn tell(&mut self, kind: Kind, found: Found) {
        let before = self.before.remove(&kind).unwrap_or_default();
        for (what, Place { place, advice }) in found.iter().filter(|(what, _)| !before.contains_key(*what)) {
            tracing::warn!(kind = kind.name(), what, place, "conflict: {advice}");
        }
        for what in before.keys().filter(|what| !found.contains_key(*what)) {
            tracing::info!(kind = kind.name(), what, "a conflict is gone");
        }
        self.counts.set(kind, found.len());
        self.before.insert(kind, found);
    }
}

/// Some names, and how many more there are.
struct Some8<'a>(&'a [String]);

impl fmt::Display for Some8<'_> {
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

    /// What is logged meanwhile.
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
    fn what_is_found_is_said_once_and_again_when_it_is_gone() {
        let found = |names: &[&str]| -> Found {
            let place = |name: &&str| (name.to_string(), Place { place: "there".into(), advice: "do something" });
            names.iter().map(place).collect()
        };
        let mut told = Told::default();
        let mut tell = |kind, names: &[&str]| {
            let log = log(|| told.tell(kind, found(names)));
            let count = |words: &str| log.lines().filter(|line| line.contains(words)).count();
            ((count("conflict: do something"), count("a conflict is gone")), told.counts.of(kind))
        };
        assert_eq!(tell(Kind::Chains, &["Calico", "Weave"]), ((2, 0), 2));
        assert_eq!(tell(Kind::Chains, &["Calico", "Weave"]), ((0, 0), 2), "it was said");
        assert_eq!(tell(Kind::Cni, &[]), ((0, 0), 0), "another kind's");
        assert_eq!(tell(Kind::Chains, &["Calico", "kindnet"]), ((1, 1), 2));
        assert_eq!(tell(Kind::Chains, &[]), ((0, 2), 0));
        assert_eq!(tell(Kind::Chains, &["Weave"]), ((1, 0), 1), "it is back");
        let gone = log(|| told.tell(Kind::Chains, Found::new()));
        assert!(gone.contains("INFO") && gone.contains("kind=\"chains\" what=\"Weave\""), "{gone}");
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let names: Vec<String> = (0..10).map(|number| format!("veth{number}")).collect();
        assert_eq!(Some8(&names[..2]).to_string(), "veth0, veth1");
        assert!(Some8(&names).to_string().ends_with("veth7 and 2 more"));
    }
}
