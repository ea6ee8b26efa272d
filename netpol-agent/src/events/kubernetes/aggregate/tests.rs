use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::events::{End, PolicyRef};

const SECOND: Duration = Duration::from_secs(1);

/// A packet of `pod` to a peer whose address ends so.
fn denied(pod: &str, peer: u16, packets: u64) -> Denied {
    let [high, low] = peer.to_be_bytes();
    Denied {
        pod: PodKey::new("shop", pod),
        created: 1,
        topic: Topic {
            direction: Direction::Egress,
            reason: Reason::NoRule,
            peer: End { address: Some([10, 0, high, low].into()), ..End::default() },
            protocol: "TCP".into(),
            port: Some(80),
            policies: vec![PolicyRef { namespace: "shop".into(), name: "deny-all".into() }],
        },
        packets,
        at: SystemTime::UNIX_EPOCH,
    }
}

/// An aggregator and a clock; everything taken is written at once.
struct Bench {
    aggregator: Aggregator,
    start: Instant,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { aggregator: Aggregator::new(now), start: now, now }
    }

    fn deny(&mut self, pod: &str, peer: u16, packets: u64) {
        let at = SystemTime::UNIX_EPOCH + (self.now - self.start);
        self.aggregator.denied(Denied { at, ..denied(pod, peer, packets) }, self.now).unwrap();
    }

    fn written(&mut self) -> Vec<Publication> {
        let mut all = Vec::new();
        while let Some(publication) = self.aggregator.take(self.now) {
            self.aggregator.published(&publication, self.now);
            all.push(publication);
        }
        all
    }

    /// Waits, and takes whatever is due on the way: (when, count, whether it is an update).
    fn wait(&mut self, time: Duration) -> Vec<(u64, Series)> {
        let until = self.now + time;
        let mut all = Vec::new();
        loop {
            for publication in self.written() {
                let Publication::Denied(series) = publication else { panic!("{publication:?}") };
                all.push(((self.now - self.start).as_secs(), series));
            }
            let now = self.now;
            let allowed = self.aggregator.allowed(now);
            match self.aggregator.wake().map(|wake| wake.max(allowed)) {
                // What is woken for and not there must not be woken for again at once.
                Some(wake) if wake <= until => {
                    assert!(wake > now, "wakes for nothing");
                    self.now = wake;
                }
                _ => break,
            }
        }
        self.now = until;
        all
    }
}

#[test]
fn the_first_packet_is_told_within_a_second_and_the_next_ones_ever_less_often() {
    let mut bench = Bench::new();
    let mut told = Vec::new();
    for _ in 0..3600 {
        bench.deny("web", 1, 2);
        told.extend(bench.wait(SECOND).into_iter().map(|(at, series)| (at, series.update, series.count)));
    }
    let told: Vec<_> = told.iter().map(|(at, update, count)| (*at, *update, count / 2)).collect();
    assert_eq!(told[0], (0, false, 1));
    let at: Vec<u64> = told.iter().map(|(at, ..)| *at).collect();
    assert_eq!(at, [0, 15, 60, 195, 600, 1200, 1800, 2400, 3000], "{told:?}");
    for (at, update, count) in &told[1..] {
        assert!(*update && (at..=&(at + 1)).contains(&count), "{told:?}");
    }
}

#[test]
fn what_happened_once_is_told_once() {
    let mut bench = Bench::new();
    bench.deny("web", 1, 1);
    assert_eq!(bench.wait(3600 * SECOND).len(), 1);
    // Forgotten by now: another Event, not an update of the first.
    bench.deny("web", 1, 1);
    let again = bench.wait(SECOND);
    assert!(again.len() == 1 && !again[0].1.update, "{again:?}");
}

#[test]
fn a_scan_makes_a_few_events_and_one_for_all_others() {
    let mut bench = Bench::new();
    for peer in 0..5000 {
        bench.deny("web", peer, 1);
    }
    let told = bench.wait(SECOND);
    assert_eq!(told.len(), TOPICS + 1);
    let rest: Vec<_> = told.iter().filter(|(_, series)| series.merged).collect();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].1.count, 5000 - TOPICS as u64);
}

#[test]
fn a_busy_pod_still_has_tokens_for_something_new() {
    let mut bench = Bench::new();
    for _ in 0..2000 {
        for peer in 0..8 {
            bench.deny("web", peer, 1);
        }
        bench.wait(SECOND);
    }
    bench.deny("web", 100, 1);
    let told = bench.wait(SECOND);
    assert!(told.iter().any(|(_, series)| !series.update), "{told:?}");
}

#[test]
fn what_cannot_be_written_is_told_later_with_all_that_came_since() {
    let mut bench = Bench::new();
    bench.deny("web", 1, 1);
    bench.now += SECOND;
    let first = bench.aggregator.take(bench.now).unwrap();
    bench.deny("web", 1, 4);
    assert_eq!(bench.aggregator.take(bench.now), None, "one at a time");
    bench.aggregator.failed(&first, bench.now);
    let told = bench.wait(SECOND);
    assert!(told.len() == 1 && told[0].1.count == 5 && !told[0].1.update, "{told:?}");
}

#[test]
fn the_end_hurries_what_would_have_waited() {
    let mut bench = Bench::new();
    bench.deny("web", 1, 1);
    bench.wait(SECOND);
    bench.deny("web", 1, 1);
    assert_eq!(bench.written(), []);
    bench.aggregator.hurry(bench.now);
    assert_eq!(bench.written().len(), 1);
}

#[test]
fn a_pod_that_is_gone_is_not_spoken_of_and_its_successor_is() {
    let mut bench = Bench::new();
    bench.deny("web", 1, 1);
    bench.deny("web", 2, 1);
    bench.now += SECOND;
    let first = bench.aggregator.take(bench.now).unwrap();
    bench.aggregator.lost(&first, Dropped::Gone, bench.now);
    assert_eq!(bench.written(), []);
    let successor = Denied { created: 2, ..denied("web", 1, 1) };
    bench.aggregator.denied(successor, bench.now).unwrap();
    assert_eq!(bench.wait(SECOND).len(), 1);
}

#[test]
fn memory_is_bounded_by_pods_and_told_when_it_is_full() {
    let mut bench = Bench::new();
    let results: Vec<_> =
        (0..2 * PODS).map(|n| bench.aggregator.denied(denied(&format!("pod-{n}"), 1, 1), bench.now)).collect();
    assert_eq!(results.iter().filter(|result| **result == Err(Dropped::Memory)).count(), PODS);
    assert_eq!(bench.aggregator.pods.len(), PODS);
    // Once they are told and quiet, others have the room.
    bench.wait(4 * 3600 * SECOND);
    assert!(bench.aggregator.pods.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Deny { pod: u8, peer: u16, packets: u64 },
    Wait(u64),
    Write { fails: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u8, 0..40_u16, 1..1000_u64).prop_map(|(pod, peer, packets)| Step::Deny { pod, peer, packets }),
        2 => (1..400_000_u64).prop_map(Step::Wait),
        4 => any::<bool>().prop_map(|fails| Step::Write { fails }),
    ]
}

proptest! {
    #[test]
    fn counts_add_up_memory_is_bounded_and_the_rate_is_kept(steps in prop::collection::vec(step(), 0..400)) {
        let mut bench = Bench::new();
        let mut sent = 0;
        // By pod and id: the last count told.
        let mut told = BTreeMap::new();
        let mut written: Vec<(Instant, PodKey)> = Vec::new();
        for step in steps {
            match step {
                Step::Deny { pod, peer, packets } => {
                    bench.deny(&format!("pod-{pod}"), peer, packets);
                    sent += packets;
                }
                Step::Wait(millis) => bench.now += Duration::from_millis(millis),
                Step::Write { fails } => {
                    let Some(publication) = bench.aggregator.take(bench.now) else { continue };
                    if fails {
                        bench.aggregator.failed(&publication, bench.now);
                        continue;
                    }
                    bench.aggregator.published(&publication, bench.now);
                    let Publication::Denied(series) = publication else { unreachable!() };
                    written.push((bench.now, series.pod.clone()));
                    let before = told.insert((series.pod, series.id), series.count);
                    prop_assert_eq!(before.is_some(), series.update);
                    prop_assert!(before.is_none_or(|before| before < series.count));
                }
            }
            for pod in bench.aggregator.pods.values() {
                prop_assert!(pod.lines.len() <= TOPICS + 1);
            }
        }
        // What is left is told in the end, and then every packet was told once.
        bench.now += 24 * 3600 * SECOND;
        bench.aggregator.hurry(bench.now);
        for (_, series) in bench.wait(3600 * SECOND) {
            told.insert((series.pod, series.id), series.count);
        }
        prop_assert_eq!(told.values().sum::<u64>(), sent);
        // In no stretch of time more than a burst and what was refilled in it.
        let pods: BTreeSet<_> = written.iter().map(|(_, pod)| pod.clone()).collect();
        for (from, (begin, _)) in written.iter().enumerate() {
            for (to, (end, _)) in written.iter().enumerate().skip(from) {
                let length = *end - *begin;
                let allowed = |burst: u32, refill: Duration| burst as usize + 1 + (length.as_millis() / refill.as_millis()) as usize;
                prop_assert!(to - from < allowed(NODE_BURST, NODE_REFILL));
                for pod in &pods {
                    let of_pod = written[from..=to].iter().filter(|(_, each)| each == pod).count();
                    prop_assert!(of_pod <= allowed(POD_BURST, POD_REFILL));
                }
            }
        }
    }
}
