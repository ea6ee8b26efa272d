use std::collections::{BTreeMap, BTreeSet};

use netpol_api::FlowEnd;
use netpol_common::{Direction, Reason};
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Returns packets that were denied from `pod` to a peer. `peer` is the last 16 bits of the peer's address.
fn denied(pod: &str, peer: u16, packets: u64) -> Denied {
    let [high, low] = peer.to_be_bytes();
    Denied {
        pod: PodKey::new("shop", pod),
        created: 1,
        topic: Topic {
            direction: Direction::Egress,
            reason: Reason::NoRule,
            shadow: false,
            peer: Box::new(FlowEnd { address: Some([10, 0, high, low].into()), ..FlowEnd::default() }),
            protocol: "TCP".into(),
            port: Some(80),
            policies: vec!["shop/deny-all".to_owned()],
        },
        packets,
        at: SystemTime::UNIX_EPOCH,
    }
}

/// An aggregator and a clock. Each publication is written as soon as the aggregator returns it.
struct Fixture {
    aggregator: Aggregator,
    start: Instant,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        let now = Instant::now();
        Self { aggregator: Aggregator::new(now), start: now, now }
    }

    fn deny(&mut self, pod: &str, peer: u16, packets: u64) {
        let at = SystemTime::UNIX_EPOCH + (self.now - self.start);
        self.aggregator.denied(Denied { at, ..denied(pod, peer, packets) }, self.now).unwrap();
    }

    /// Writes all publications that are due, and returns them.
    fn write_due(&mut self) -> Vec<Publication> {
        let mut all = Vec::new();
        while let Some(publication) = self.aggregator.take_due(self.now) {
            self.aggregator.published(&publication, self.now);
            all.push(publication);
        }
        all
    }

    /// Advances the clock, and writes all publications that become due. Returns each series, with the seconds from the
    /// start of the test to its publication.
    fn wait(&mut self, time: Duration) -> Vec<(u64, Series)> {
        let until = self.now + time;
        let mut all = Vec::new();
        loop {
            for publication in self.write_due() {
                let Publication::Denied(series) = publication else { panic!("{publication:?}") };
                all.push(((self.now - self.start).as_secs(), series));
            }
            let now = self.now;
            let next_token_at = self.aggregator.next_token_at(now);
            match self.aggregator.next_due().map(|due| due.max(next_token_at)) {
                Some(next) if next <= until => {
                    assert!(next > now, "a publication is due, but `take_due` did not return it");
                    self.now = next;
                }
                _ => break,
            }
        }
        self.now = until;
        all
    }
}

#[test]
fn the_first_packet_is_reported_within_a_second_and_later_ones_at_growing_intervals() {
    let mut fixture = Fixture::new();
    let mut reported = Vec::new();
    // Two packets are denied in each second. So half of a count is the number of seconds since the start.
    for _ in 0..3600 {
        fixture.deny("web", 1, 2);
        reported.extend(fixture.wait(SECOND).into_iter().map(|(at, series)| (at, series.update, series.count)));
    }
    let reported: Vec<_> = reported.iter().map(|(at, update, count)| (*at, *update, count / 2)).collect();
    assert_eq!(reported[0], (0, false, 1));
    let at: Vec<u64> = reported.iter().map(|(at, ..)| *at).collect();
    assert_eq!(at, [0, 15, 60, 195, 600, 1200, 1800, 2400, 3000], "{reported:?}");
    for (at, update, count) in &reported[1..] {
        assert!(*update && (at..=&(at + 1)).contains(&count), "{reported:?}");
    }
}

#[test]
fn a_single_packet_is_reported_once() {
    let mut fixture = Fixture::new();
    fixture.deny("web", 1, 1);
    assert_eq!(fixture.wait(3600 * SECOND).len(), 1);
    // The topic has expired: a new Event instead of an update.
    fixture.deny("web", 1, 1);
    let second = fixture.wait(SECOND);
    assert!(second.len() == 1 && !second[0].1.update, "{second:?}");
}

#[test]
fn a_port_scan_creates_a_few_events_and_one_for_all_others() {
    let mut fixture = Fixture::new();
    for peer in 0..5000 {
        fixture.deny("web", peer, 1);
    }
    let reported = fixture.wait(SECOND);
    assert_eq!(reported.len(), MAX_TOPICS + 1);
    let rest: Vec<_> = reported.iter().filter(|(_, series)| series.merged).collect();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].1.count, 5000 - MAX_TOPICS as u64);
}

#[test]
fn a_busy_pod_still_has_tokens_for_a_new_topic() {
    let mut fixture = Fixture::new();
    // Each write needs a token of the pod (a rate limit). The updates of eight topics use up all tokens, except those
    // that are reserved for new Events.
    for _ in 0..2000 {
        for peer in 0..8 {
            fixture.deny("web", peer, 1);
        }
        fixture.wait(SECOND);
    }
    fixture.deny("web", 100, 1);
    let reported = fixture.wait(SECOND);
    assert!(reported.iter().any(|(_, series)| !series.update), "{reported:?}");
}

#[test]
fn would_be_denials_do_not_delay_events_about_denials() {
    let mut fixture = Fixture::new();
    for (number, peer) in (0..MAX_PODS).flat_map(|number| (0..20).map(move |peer| (number, peer))) {
        let mut shadow = denied(&format!("shadow-{number}"), peer, 1);
        shadow.topic.shadow = true;
        let result = fixture.aggregator.denied(shadow, fixture.now);
        // Would-be denials may use only half of the places for pods.
        assert_eq!(result.is_ok(), number < MAX_PODS / 2, "{number}");
    }
    let shadow = fixture.wait(SECOND);
    assert!(shadow.iter().all(|(_, series)| series.topic.shadow));
    assert_eq!(shadow.len(), (NODE_BURST - NODE_RESERVED_FOR_DENIALS) as usize, "all pods share the node's tokens");
    for peer in 0..5000 {
        fixture.deny("web", peer, 1);
    }
    let denials = fixture.wait(SECOND);
    let denials = denials.iter().filter(|(_, series)| !series.topic.shadow).count();
    assert_eq!(denials, MAX_TOPICS + 1, "one Event for each of the first topics, and one for all others");
    // Would-be denials continue when the node has tokens again.
    assert!(fixture.wait(60 * SECOND).iter().any(|(_, series)| series.topic.shadow));
}

#[test]
fn a_retry_of_a_failed_write_includes_the_packets_since_the_first_attempt() {
    let mut fixture = Fixture::new();
    fixture.deny("web", 1, 1);
    fixture.now += SECOND;
    let first = fixture.aggregator.take_due(fixture.now).unwrap();
    fixture.deny("web", 1, 4);
    assert_eq!(
        fixture.aggregator.take_due(fixture.now),
        None,
        "a publication that is being written is not taken again"
    );
    fixture.aggregator.failed(&first, fixture.now);
    let reported = fixture.wait(SECOND);
    assert!(reported.len() == 1 && reported[0].1.count == 5 && !reported[0].1.update, "{reported:?}");
}

#[test]
fn a_flush_makes_delayed_updates_due() {
    let mut fixture = Fixture::new();
    fixture.deny("web", 1, 1);
    fixture.wait(SECOND);
    fixture.deny("web", 1, 1);
    assert_eq!(fixture.write_due(), []);
    fixture.aggregator.flush(fixture.now);
    assert_eq!(fixture.write_due().len(), 1);
}

#[test]
fn a_deleted_pod_is_not_reported_but_a_later_pod_with_the_same_name_is() {
    let mut fixture = Fixture::new();
    fixture.deny("web", 1, 1);
    fixture.deny("web", 2, 1);
    fixture.now += SECOND;
    let first = fixture.aggregator.take_due(fixture.now).unwrap();
    fixture.aggregator.discarded(&first, DropReason::Deleted, fixture.now);
    assert_eq!(fixture.write_due(), []);
    let later_pod = Denied { created: 2, ..denied("web", 1, 1) };
    fixture.aggregator.denied(later_pod, fixture.now).unwrap();
    assert_eq!(fixture.wait(SECOND).len(), 1);
}

#[test]
fn the_number_of_pods_is_bounded_and_packets_of_further_pods_are_rejected() {
    let mut fixture = Fixture::new();
    let results: Vec<_> =
        (0..2 * MAX_PODS).map(|n| fixture.aggregator.denied(denied(&format!("pod-{n}"), 1, 1), fixture.now)).collect();
    assert_eq!(results.iter().filter(|result| **result == Err(DropReason::TooManyPods)).count(), MAX_PODS);
    assert_eq!(fixture.aggregator.pods.len(), MAX_PODS);
    // A pod is removed when its Events are written and its topics have expired.
    fixture.wait(4 * 3600 * SECOND);
    assert!(fixture.aggregator.pods.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    /// Packets are denied.
    Deny { pod: u8, peer: u16, packets: u64 },
    /// This many milliseconds pass.
    Wait(u64),
    /// A publication that is due is written.
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
    fn counts_add_up_and_memory_and_rate_are_bounded(steps in prop::collection::vec(step(), 0..400)) {
        let mut fixture = Fixture::new();
        let mut denied_packets = 0;
        // The last reported count, by pod and ID of the Event.
        let mut reported = BTreeMap::new();
        // The time and the pod of each successful write.
        let mut written: Vec<(Instant, PodKey)> = Vec::new();
        for step in steps {
            match step {
                Step::Deny { pod, peer, packets } => {
                    fixture.deny(&format!("pod-{pod}"), peer, packets);
                    denied_packets += packets;
                }
                Step::Wait(millis) => fixture.now += Duration::from_millis(millis),
                Step::Write { fails } => {
                    let Some(publication) = fixture.aggregator.take_due(fixture.now) else { continue };
                    if fails {
                        fixture.aggregator.failed(&publication, fixture.now);
                        continue;
                    }
                    fixture.aggregator.published(&publication, fixture.now);
                    let Publication::Denied(series) = publication else { unreachable!() };
                    written.push((fixture.now, series.pod.clone()));
                    let before = reported.insert((series.pod, series.id), series.count);
                    prop_assert_eq!(before.is_some(), series.update);
                    prop_assert!(before.is_none_or(|before| before < series.count));
                }
            }
            for pod in fixture.aggregator.pods.values() {
                prop_assert!(pod.series.len() <= MAX_TOPICS + 1);
            }
        }
        // At the end, all packets are reported, and each was counted once.
        fixture.now += 24 * 3600 * SECOND;
        fixture.aggregator.flush(fixture.now);
        for (_, series) in fixture.wait(3600 * SECOND) {
            reported.insert((series.pod, series.id), series.count);
        }
        prop_assert_eq!(reported.values().sum::<u64>(), denied_packets);
        // No interval may contain more writes than a burst and the tokens refilled in this interval.
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
