//! Measures the time to compile one change, and the number of map writes that the change causes, in small and large
//! clusters: `cargo bench -p netpol-policy`. Also measures the time to explain a flow.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netpol_common::Direction;
use netpol_policy::cluster_state::{ClusterState, Event};
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::explain::explain_flow;
use netpol_policy::model::{Mode, Object, ObjectKey, Pod, Protocol};
use netpol_policy::reference::Packet;
use netpol_policy::testing::{cluster, cluster_with_services, local_node};

/// About how many objects are changed for each row of the output.
const SAMPLES: usize = 200;

fn main() {
    println!("{:<48} {:>10} {:>10} {:>8}", "pods / policies: change", "median µs", "90 % µs", "writes");
    for (pods, policies) in [(100, 10), (1_000, 100), (10_000, 1_000)] {
        let objects = cluster(pods, policies);
        let mut engine = Engine::new(NodeScope::Node(local_node()), FirstIds::default());
        let started = Instant::now();
        let writes = engine.apply(Event::Reset(objects.clone())).len();
        let label = |what: &str| format!("{pods} / {policies}: {what}");
        print_row(&label("all objects at once"), &mut [started.elapsed()], writes);
        let sample = |keep: fn(&Object) -> bool| {
            let chosen: Vec<_> = objects.iter().filter(|object| keep(object)).cloned().collect();
            // Pods are on 100 nodes in turn. The step is odd, so that the chosen pods are on many nodes.
            let step = (chosen.len() / SAMPLES) | 1;
            chosen.into_iter().step_by(step).collect::<Vec<_>>()
        };
        let some_pods = sample(|object| matches!(object, Object::Pod(_)));
        let some_policies = sample(|object| matches!(object, Object::Policy(_)));
        measure_delete_and_apply(&mut engine, &label("a pod"), &some_pods);
        measure_relabel(&mut engine, &label("a pod's labels"), &some_pods);
        measure_delete_and_apply(&mut engine, &label("a policy"), &some_policies);
    }
    measure_services(20_000, 5_000);
    measure_explanations(10_000, 1_000);
}

/// Measures how long it takes to explain a flow to a pod of the local node. In one row, the flows come from a pod, in
/// another row from outside the cluster. Policies allow some of these flows.
fn measure_explanations(pods: usize, policies: usize) {
    let state = ClusterState::from_objects(cluster(pods, policies));
    let node = local_node();
    let local: Vec<&Pod> = state.pods.values().filter(|pod| pod.node.as_ref() == Some(&node)).collect();
    let pod_address = local[0].addresses[0];
    for (label, remote) in [("a pod", pod_address), ("outside", IpAddr::from([198, 51, 100, 1]))] {
        let mut times = Vec::new();
        for pod in local.iter().cycle().skip(1).take(1_000) {
            let packet = Packet {
                pod: pod.key.clone(),
                direction: Direction::Ingress,
                remote,
                protocol: Protocol::Tcp.number(),
                port: 8080,
                from_node: false,
                is_hairpin: false,
                post_dnat: false,
            };
            // The result is used, so that the compiler does not remove the call.
            measure(&mut times, || usize::from(explain_flow(&state, &packet, Mode::Enforce).ingress.is_none()));
        }
        // An explanation writes nothing.
        print_row(&format!("{pods} / {policies}: explain a flow from {label}"), &mut times, 0);
    }
}

/// Measures changes in a cluster with Services. Each Service has an equal share of the pods as backends. One additional
/// Service, `big`, has a thousand of these pods as backends.
fn measure_services(pods: usize, services: usize) {
    let mut objects = cluster_with_services(pods, services);
    let label = |what: &str| format!("{pods} / {services} Services: {what}");
    let big = large_service(&objects, 1_000);
    objects.extend(big.iter().cloned());
    let mut engine = Engine::new(NodeScope::Node(local_node()), FirstIds::default());
    let started = Instant::now();
    let writes = engine.apply(Event::Reset(objects.clone())).len();
    print_row(&label("all objects at once"), &mut [started.elapsed()], writes);
    let sample = |keep: fn(&Object) -> bool| {
        let chosen: Vec<_> = objects.iter().filter(|object| keep(object)).cloned().collect();
        // Pods are on 100 nodes in turn. The step is odd, so that the chosen pods are not all on the local node.
        let step = (chosen.len() / SAMPLES) | 1;
        chosen.into_iter().step_by(step).collect::<Vec<_>>()
    };
    // "Slice" stands for EndpointSlice. The slice of the Service `big` has 1,000 endpoints.
    measure_slices(&mut engine, &label("a slice"), &sample(|object| matches!(object, Object::Slice(_))));
    measure_slices(&mut engine, &label("a slice of 1000"), &big[1..]);
    measure_delete_and_apply(&mut engine, &label("a Service"), &sample(|object| matches!(object, Object::Service(_))));
    let some_pods = sample(|object| matches!(object, Object::Pod(_)));
    measure_delete_and_apply(&mut engine, &label("a pod"), &some_pods);
    measure_relabel(&mut engine, &label("a pod's labels"), &some_pods);
    measure_delete_and_apply(&mut engine, &label("a policy"), &sample(|object| matches!(object, Object::Policy(_))));
}

/// Returns the Service `big` and its `EndpointSlice`. They are taken from a small cluster. The address of a pod depends
/// only on the pod's number, so the backends are the first `count` pods of `objects`.
fn large_service(objects: &[Object], count: usize) -> [Object; 2] {
    let small_cluster = cluster_with_services(count, 1);
    let rename = |object: &Object| match object.clone() {
        Object::Service(mut service) => {
            service.key.name = "big".into();
            service.addresses = vec![std::net::Ipv4Addr::new(10, 255, 0, 1).into()];
            Some(Object::Service(service))
        }
        Object::Slice(mut slice) => {
            (slice.key.name, slice.service) = ("big".into(), Some("big".into()));
            Some(Object::Slice(slice))
        }
        _ => None,
    };
    let found: Vec<_> = small_cluster.iter().filter_map(rename).collect();
    assert!(objects.len() > count, "the cluster has too few pods for the large Service");
    found.try_into().expect("expected one Service and one slice")
}

/// Measures the removal of one endpoint from each slice, and then the addition of this endpoint.
fn measure_slices(engine: &mut Engine, label: &str, slices: &[Object]) {
    let (mut remove, mut add, mut writes) = (Vec::new(), Vec::new(), (0, 0));
    for object in slices {
        let Object::Slice(slice) = object else { continue };
        let mut fewer = slice.clone();
        fewer.endpoints.pop();
        writes.0 += measure(&mut remove, || engine.apply(Event::Apply(Object::Slice(fewer))).len());
        writes.1 += measure(&mut add, || engine.apply(Event::Apply(object.clone())).len());
    }
    print_row(&format!("{label} loses an endpoint"), &mut remove, writes.0 / slices.len());
    print_row(&format!("{label} gains one"), &mut add, writes.1 / slices.len());
}

/// Measures the deletion of each object, and then the addition of the same object.
fn measure_delete_and_apply(engine: &mut Engine, label: &str, objects: &[Object]) {
    let (mut delete, mut apply, mut writes) = (Vec::new(), Vec::new(), (0, 0));
    for object in objects {
        let key: ObjectKey = object.key();
        writes.0 += measure(&mut delete, || engine.apply(Event::Delete(key)).len());
        writes.1 += measure(&mut apply, || engine.apply(Event::Apply(object.clone())).len());
    }
    print_row(&format!("{label} deleted"), &mut delete, writes.0 / objects.len());
    print_row(&format!("{label} added"), &mut apply, writes.1 / objects.len());
}

/// Measures a change of each pod's labels. The change back to the old labels is not measured.
fn measure_relabel(engine: &mut Engine, label: &str, objects: &[Object]) {
    let (mut times, mut writes) = (Vec::new(), 0);
    for object in objects {
        let Object::Pod(pod) = object else { continue };
        let mut other = pod.clone();
        other.labels = other.labels.with("app".into(), "app-0".into());
        writes += measure(&mut times, || engine.apply(Event::Apply(Object::Pod(other))).len());
        engine.apply(Event::Apply(object.clone()));
    }
    print_row(label, &mut times, writes / objects.len());
}

/// Appends the time of one call of `work` to `times`. Returns the result of `work`: a number of writes.
fn measure(times: &mut Vec<Duration>, work: impl FnOnce() -> usize) -> usize {
    let started = Instant::now();
    let writes = work();
    times.push(started.elapsed());
    writes
}

/// Prints the median and the 90th percentile of the times, and the mean number of writes of one change.
fn print_row(label: &str, times: &mut [Duration], writes: usize) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e6;
    println!("{label:<48} {:>10.1} {:>10.1} {writes:>8}", at(50), at(90));
}
