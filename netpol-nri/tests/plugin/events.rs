//! Tests the plugin with a fake container runtime that follows the protocol.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::recorder::{Connection, Recorder, TIME_LIMIT, options};
use netpol_nri::{Disconnected, keep_connected};
use netpol_nri_double::{Events, NriServer, Options, PodSandbox, Start};
use tempfile::TempDir;

/// A node with a fake runtime.
struct Node {
    server: NriServer,
    socket: PathBuf,
    _directory: TempDir,
}

impl Node {
    fn new(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nri.sock");
        Self { server: NriServer::start(&socket, options).unwrap(), socket, _directory: directory }
    }

    /// Connects a plugin with a [`Recorder`].
    fn connect(&self) -> Connection {
        let connection = Connection::start(&self.socket);
        self.server.wait_for_plugin("netpol", TIME_LIMIT).unwrap();
        connection
    }
}

/// Returns a pod. For some names, the [`Recorder`] does not allow the start at once: see its `run`.
fn pod(name: &str) -> PodSandbox {
    PodSandbox::new(&format!("id-{name}"), "shop", name).on_network("/run/netns/pod", &["10.1.0.5", "fd00::5"])
}

#[test]
fn events_are_received_in_both_ways_in_which_runtimes_send_them() {
    for events in [Events::StateChange, Events::Methods] {
        let node = Node::new(Options { events, ..Options::default() });
        node.server.add(&pod("old"));
        let connection = node.connect();
        // For the pod `shown`, the recorder also records the sandbox.
        assert_eq!(node.server.run(&pod("shown")), Start::Allowed);
        // The handler receives the removal as a second stop.
        assert_eq!(node.server.stop(&pod("shown")), Ok(()));
        assert_eq!(node.server.remove(&pod("shown")), Ok(()));
        assert_eq!(
            connection.recorder.events(),
            [
                "connected to containerd v2.2.0 Some(2s)",
                "synchronize 1: old",
                "run shop/shown",
                r#"Sandbox { id: "id-shown", namespace: "shop", name: "shown", uid: "uid-of-shop-shown", network_namespace: Some("/run/netns/pod"), host_network: false, addresses: [10.1.0.5, fd00::5], has_containers: false }"#,
                "stop shop/shown",
                "stop shop/shown",
            ],
            "{events:?}"
        );
    }
}

#[test]
fn the_plugin_allows_or_refuses_the_creation_of_a_container() {
    for sandboxes_per_message in [None, Some(1)] {
        let node = Node::new(Options { sandboxes_per_message, ..Options::default() });
        for name in ["empty", "used"] {
            node.server.add(&pod(name));
        }
        // No plugin is connected yet.
        assert!(matches!(node.server.create_container(&pod("used"), "init"), Start::Unguarded(_)));
        let connection = node.connect();
        assert_eq!(node.server.create_container(&pod("empty"), "app"), Start::Allowed);
        node.server.add(&pod("refused"));
        let refused = Start::Refused("the policies are not enforced".to_owned());
        assert_eq!(node.server.create_container(&pod("refused"), "app"), refused);
        let expected = [
            "synchronize 2: empty used",
            "used has containers",
            "create a container of shop/empty",
            "create a container of shop/refused",
        ];
        assert_eq!(connection.recorder.events()[1..], expected, "{sandboxes_per_message:?}");
    }
}

#[test]
fn a_host_network_pod_is_reported_as_such() {
    let node = Node::new(Options::default());
    let connection = node.connect();
    assert_eq!(node.server.run(&PodSandbox::new("id", "kube-system", "shown").uid("u1")), Start::Allowed);
    let expected = r#"Sandbox { id: "id", namespace: "kube-system", name: "shown", uid: "u1", network_namespace: None, host_network: true, addresses: [], has_containers: false }"#;
    assert_eq!(connection.recorder.events().last().unwrap(), expected);
}

#[test]
fn a_refused_pod_is_stopped_and_removed() {
    let node = Node::new(Options::default());
    let connection = node.connect();
    assert_eq!(node.server.run(&pod("refused")), Start::Refused("the policies are not enforced".to_owned()));
    // The first two events are the connection and the list of sandboxes.
    assert_eq!(connection.recorder.events()[2..], ["run shop/refused", "stop shop/refused", "stop shop/refused"]);
    assert_eq!(node.server.run(&pod("web")), Start::Allowed, "the plugin is still connected");
}

#[test]
fn the_list_of_sandboxes_comes_in_parts() {
    // The first list has 7 sandboxes, 2 in each part. The second list is split because 6,000 sandboxes with long
    // annotations do not fit into one message. The third list is empty.
    for (count, sandboxes_per_message, annotation) in [(7, Some(2), 0), (6000, None, 1000), (0, None, 0)] {
        let node = Node::new(Options { sandboxes_per_message, request_timeout: TIME_LIMIT, ..Options::default() });
        for number in 0..count {
            let mut sandbox = pod(&format!("pod-{number}"));
            sandbox.annotations.insert("text".to_owned(), "a".repeat(annotation));
            node.server.add(&sandbox);
        }
        let connection = node.connect();
        let first: Vec<_> = (0..count.min(3)).map(|number| format!("pod-{number}")).collect();
        assert_eq!(connection.recorder.events()[1], format!("synchronize {count}: {}", first.join(" ")));
        assert_eq!(node.server.run(&pod("web")), Start::Allowed);
    }
}

#[test]
fn the_handler_answers_before_the_runtimes_timeout() {
    // The runtime's timeout is 2 s. The handler's deadline is 1.5 s.
    let node = Node::new(Options::default());
    let _connection = node.connect();
    let started = Instant::now();
    let start = node.server.run(&pod("hesitant"));
    assert!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
    assert_eq!(start, Start::Refused("not enforced after 1.5s".to_owned()));
}

#[test]
fn a_handler_that_does_not_answer_is_cancelled_before_the_runtimes_timeout() {
    // The runtime's timeout is 2 s. The handler is cancelled after 1.75 s.
    let node = Node::new(Options::default());
    let connection = node.connect();
    assert_eq!(node.server.run(&pod("stuck")), Start::Refused("not ready within 1750 ms".to_owned()));
    assert_eq!(node.server.stop(&pod("stuck")), Ok(()), "a sandbox stops in any case");
    assert_eq!(node.server.run(&pod("web")), Start::Allowed);
    assert!(connection.is_open());
}

#[test]
fn a_panic_refuses_the_start_and_keeps_the_connection() {
    // Printing the backtrace of the panic takes long, so the runtime's timeout is 20 s in this test.
    let node = Node::new(Options { request_timeout: TIME_LIMIT, ..Options::default() });
    let _connection = node.connect();
    assert_eq!(node.server.run(&pod("panicking")), Start::Refused("the plugin failed".to_owned()));
    assert_eq!(node.server.run(&pod("web")), Start::Allowed);
}

#[test]
fn a_plugin_with_a_handler_that_blocks_the_thread_is_disconnected_and_the_pod_starts() {
    let node = Node::new(Options { request_timeout: Duration::from_millis(300), ..Options::default() });
    let connection = node.connect();
    let reason = "netpol: no answer within 300ms".to_owned();
    assert_eq!(node.server.run(&pod("blocking")), Start::Unguarded(reason.clone()));
    assert_eq!(node.server.failure(), Some(reason));
    assert_eq!(connection.ended().unwrap(), Disconnected::Closed);
    assert_eq!(connection.recorder.events()[2..], ["run shop/blocking", "unanswered shop/blocking"]);
}

#[test]
fn a_pod_starts_if_the_plugin_is_killed_while_it_delays_the_start() {
    let node = Node::new(Options { request_timeout: TIME_LIMIT, ..Options::default() });
    let connection = node.connect();
    thread::scope(|scope| {
        let start = scope.spawn(|| node.server.run(&pod("held")));
        connection.recorder.wait_for("run shop/held");
        connection.kill();
        assert_eq!(start.join().unwrap(), Start::Unguarded("netpol: the connection is closed".to_owned()));
    });
    assert_eq!(node.server.run(&pod("web")), Start::Unguarded("no plugin is connected".to_owned()));
}

#[test]
fn a_closed_connection_a_shutdown_and_a_missing_runtime_are_reported() {
    let node = Node::new(Options::default());
    let connection = node.connect();
    node.server.disconnect();
    assert_eq!(connection.ended().unwrap(), Disconnected::Closed);

    let connection = node.connect();
    node.server.shutdown();
    assert_eq!(connection.ended().unwrap(), Disconnected::Shutdown);

    let Node { server, socket, .. } = node;
    drop(server);
    let message = Connection::start(&socket).failure();
    assert!(message.starts_with("cannot connect to ") && message.contains("nri.sock"), "{message}");
}

#[test]
fn the_plugin_connects_again_after_growing_waits() {
    let node = Node::new(Options::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (send, reports) = channel();
    let (recorder, socket) = (Arc::new(Recorder::default()), node.socket.clone());
    let handler = recorder.clone();
    runtime.spawn(async move {
        let report = |ended: Result<Disconnected, _>, wait| send.send((ended.ok(), wait)).unwrap();
        keep_connected(&socket, &options(), handler, report).await
    });
    node.server.wait_for_plugin("netpol", TIME_LIMIT).unwrap();
    node.server.disconnect();
    node.server.wait_for_plugin("netpol", TIME_LIMIT).unwrap();
    assert_eq!(reports.recv_timeout(TIME_LIMIT).unwrap(), (Some(Disconnected::Closed), Duration::from_millis(50)));
    assert_eq!(node.server.run(&pod("web")), Start::Allowed);

    let Node { server, socket, _directory } = node;
    drop(server);
    // The wait doubles. `None`: the plugin could not connect.
    let waits: Vec<_> = reports.iter().take(4).map(|(ended, wait)| (ended, wait.as_millis())).collect();
    assert_eq!(waits, [(Some(Disconnected::Closed), 100), (None, 200), (None, 400), (None, 800)]);
    let server = NriServer::start(&socket, Options::default()).unwrap();
    server.wait_for_plugin("netpol", TIME_LIMIT).unwrap();
    // The plugin received the list of sandboxes on each of its three connections.
    assert_eq!(recorder.events().iter().filter(|event| event.starts_with("synchronize")).count(), 3);
}

#[test]
fn plugins_are_called_in_order_of_their_indexes() {
    let node = Node::new(Options::default());
    // This plugin has the index 99.
    let _last = node.connect();
    let first_options = netpol_nri::Options::new("other", 3).unwrap();
    let first = Connection::with(&node.socket, first_options, Recorder::default());
    node.server.wait_for_plugin("other", TIME_LIMIT).unwrap();
    assert!(matches!(node.server.run(&pod("refused")), Start::Refused(_)));
    assert_eq!(first.recorder.events()[2], "run shop/refused");
    // The plugin `other` (index 3) has five events: the connection, the list of sandboxes, and the start, the stop and
    // the removal of the refused sandbox. When a plugin refuses a start, the runtime does not call the next plugin.
    // Both plugins would refuse this start. So `other` receives it only if `other` is called first.
    assert_eq!(first.recorder.events().len(), 5);
}
