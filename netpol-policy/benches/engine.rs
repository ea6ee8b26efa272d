//! What one change costs the compiler, in a small cluster and in a big one: `cargo bench -p netpol-policy`.

use std::time::{Duration, Instant};

use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::model::{Object, ObjectKey};
use netpol_policy::testing::{cluster, local_node};
use netpol_policy::world::Event;

/// How often each kind of change is made.
const TIMES: usize = 200;

fn main() {
    println!("{:<48} {:>10} {:>10} {:>8}", "pods / policies: what changes", "median µs", "90 % µs", "writes");
    for (pods, policies) in [(100, 10), (1_000, 100), (10_000, 1_000)] {
        let objects = cluster(pods, policies);
        let mut engine = Engine::new(NodeScope::Node(local_node()), FirstIds::default());
        let started = Instant::now();
        let writes = engine.apply(Event::Reset(objects.clone())).len();
        let label = |what: &str| format!("{pods} / {policies}: {what}");
        row(&label("everything at once"), &mut [started.elapsed()], writes);
        let every = |step: usize, keep: fn(&Object) -> bool| {
            let chosen: Vec<_> = objects.iter().filter(move |object| keep(object)).cloned().collect();
            let step = (chosen.len() / step).max(1);
            chosen.into_iter().step_by(step).collect::<Vec<_>>()
        };
        let some_pods = every(TIMES, |object| matches!(object, Object::Pod(_)));
        let some_policies = every(TIMES, |object| matches!(object, Object::Policy(_)));
        gone_and_back(&mut engine, &label("a pod"), &some_pods);
        relabelled(&mut engine, &label("a pod's labels"), &some_pods);
        gone_and_back(&mut engine, &label("a policy"), &some_policies);
    }
}

fn gone_and_back(engine: &mut Engine, label: &str, objects: &[Object]) {
    let (mut delete, mut apply, mut writes) = (Vec::new(), Vec::new(), (0, 0));
    for object in objects {
        let key: ObjectKey = object.key();
        writes.0 += timed(&mut delete, || engine.apply(Event::Delete(key)).len());
        writes.1 += timed(&mut apply, || engine.apply(Event::Apply(object.clone())).len());
    }
    row(&format!("{label} goes"), &mut delete, writes.0 / objects.len());
    row(&format!("{label} comes"), &mut apply, writes.1 / objects.len());
}

fn relabelled(engine: &mut Engine, label: &str, objects: &[Object]) {
    let (mut times, mut writes) = (Vec::new(), 0);
    for object in objects {
        let Object::Pod(pod) = object else { continue };
        let mut other = pod.clone();
        other.labels = other.labels.with("app".into(), "app-0".into());
        writes += timed(&mut times, || engine.apply(Event::Apply(Object::Pod(other))).len());
        engine.apply(Event::Apply(object.clone()));
    }
    row(label, &mut times, writes / objects.len());
}

fn timed(times: &mut Vec<Duration>, work: impl FnOnce() -> usize) -> usize {
    let started = Instant::now();
    let writes = work();
    times.push(started.elapsed());
    writes
}

fn row(label: &str, times: &mut [Duration], writes: usize) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e6;
    println!("{label:<48} {:>10.1} {:>10.1} {writes:>8}", at(50), at(90));
}
