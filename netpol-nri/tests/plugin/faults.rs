//! Tests the plugin with a fake container runtime that violates the NRI protocol, and with failing connections. NRI
//! sends ttrpc messages in frames.

use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::recorder::{Connection, Recorder, TIME_LIMIT, options};
use netpol_nri::{Disconnected, Options};
use netpol_nri_double::{
    CallError, ConfigureRequest, ConfigureResponse, Container, Empty, Plugin, PodSandbox, PodSandboxRequest,
    RegistrationResponse, StateChangeEvent, SynchronizeRequest, SynchronizeResponse, event,
};

const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
/// Status codes of gRPC, which ttrpc uses, too.
const INVALID_ARGUMENT: i32 = 3;
const UNIMPLEMENTED: i32 = 12;

/// Connects the plugin to a runtime that sends only what the test sends. With the returned [`Plugin`], the test sends
/// requests to the plugin, as the runtime does. The returned [`Connection`] runs the plugin.
fn accept(registration: RegistrationResponse, options: Options, recorder: Recorder) -> (Plugin, Connection) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nri.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let connection = Connection::with(&path, options, recorder);
    (Plugin::accept(&listener, registration).unwrap(), connection)
}

/// Connects, registers and configures a plugin. The handler of the plugin is `recorder`.
fn configured(recorder: Recorder) -> (Plugin, Connection) {
    let (plugin, connection) = accept(RegistrationResponse::Accept, options(), recorder);
    let registered = plugin.registration(TIME_LIMIT).unwrap();
    assert_eq!((registered.plugin_name.as_str(), registered.plugin_idx.as_str()), ("netpol", "99"));
    let request = ConfigureRequest { runtime_name: "containerd".to_owned(), ..ConfigureRequest::default() };
    // The plugin subscribes to the events 1 to 4: run, stop and remove a sandbox, and create a container.
    assert_eq!(plugin.call("Configure", &request, TIME_LIMIT), Ok(ConfigureResponse { events: 0b1111 }));
    (plugin, connection)
}

/// Connects, registers, configures and synchronizes a plugin. After that, the plugin receives events.
fn connected() -> (Plugin, Connection) {
    let (plugin, connection) = configured(Recorder::default());
    let synchronized = plugin.call("Synchronize", &SynchronizeRequest::default(), TIME_LIMIT);
    assert_eq!(synchronized, Ok(SynchronizeResponse { more: false }));
    (plugin, connection)
}

/// Reports the start of a pod's sandbox to the plugin, and waits for the response. [`Recorder`] handles the start
/// depending on the name: `held` waits for a permit, `stuck` waits forever, and others are finished at once.
fn run(plugin: &Plugin, name: &str, timeout: Duration) -> Result<Empty, CallError> {
    let pod = Some(PodSandbox::new("id", "shop", name));
    plugin.call("StateChange", &StateChangeEvent { event: event::RUN_POD_SANDBOX, pod, container: None }, timeout)
}

/// Returns the expected result of a call that the plugin rejects.
fn status(code: i32, message: &str) -> Result<Empty, CallError> {
    Err(CallError::Status { code, message: message.to_owned() })
}

#[test]
fn a_runtime_that_refuses_the_plugin_is_reported() {
    let refuse = RegistrationResponse::Refuse("no plugins today".to_owned());
    let (_plugin, connection) = accept(refuse, options(), Recorder::default());
    assert_eq!(connection.failure(), "the container runtime refused the plugin: no plugins today (code 2)");
}

#[test]
fn a_runtime_that_does_not_complete_a_step_is_reported() {
    let mut short_timeouts = options();
    short_timeouts.registration_timeout = Duration::from_secs(1);
    short_timeouts.synchronization_timeout = Duration::from_secs(2);
    let not_configured = "the container runtime did not register and configure the plugin within 1s";
    let (_plugin, connection) = accept(RegistrationResponse::Ignore, short_timeouts.clone(), Recorder::default());
    assert_eq!(connection.failure(), not_configured);
    let (plugin, connection) = accept(RegistrationResponse::Accept, short_timeouts.clone(), Recorder::default());
    plugin.registration(TIME_LIMIT).unwrap();
    assert_eq!(connection.failure(), not_configured);
    let (plugin, connection) = accept(RegistrationResponse::Accept, short_timeouts, Recorder::default());
    plugin.call::<ConfigureResponse>("Configure", &ConfigureRequest::default(), TIME_LIMIT).unwrap();
    assert_eq!(connection.failure(), "the container runtime did not list its sandboxes within 2s");
}

#[test]
fn a_connection_that_ends_before_synchronization_is_an_error() {
    let expected = "the container runtime closed the connection before it had registered and synchronized the plugin";
    let (plugin, connection) = accept(RegistrationResponse::Accept, options(), Recorder::default());
    plugin.close();
    assert_eq!(connection.failure(), expected);
    let (plugin, connection) = configured(Recorder::default());
    plugin.close();
    assert_eq!(connection.failure(), expected);
}

#[test]
fn a_sandbox_list_that_is_not_handled_in_time_ends_the_connection() {
    // The plugin ends the connection. Otherwise the runtime would keep it open without sending events.
    let (plugin, connection) = configured(Recorder::slow(TIME_LIMIT));
    let limit = Duration::from_secs(2);
    let answer = plugin.call::<SynchronizeResponse>("Synchronize", &SynchronizeRequest::default(), limit);
    assert!(matches!(answer, Err(CallError::Status { .. })), "{answer:?}");
    assert_eq!(connection.failure(), "the list of sandboxes was not handled in time");
}

#[test]
fn a_sandbox_list_without_end_ends_the_connection() {
    let (plugin, connection) = configured(Recorder::default());
    let part = SynchronizeRequest { pods: vec![PodSandbox::default(); 1000], more: true, ..Default::default() };
    let parts =
        (0..100).take_while(|_| plugin.call::<SynchronizeResponse>("Synchronize", &part, TIME_LIMIT).is_ok()).count();
    // Each part has 1,000 sandboxes, so the 17th part exceeds the limit of 16,384.
    assert_eq!(parts, 16);
    assert_eq!(connection.failure(), "the container runtime listed more than 16384 sandboxes");
}

#[test]
fn unknown_methods_and_services_are_not_implemented() {
    let (plugin, connection) = connected();
    let call = |service, method| plugin.call_service::<Empty>(service, method, Vec::new(), TIME_LIMIT);
    assert_eq!(call(PLUGIN, "Dance"), status(UNIMPLEMENTED, "method Dance"));
    assert_eq!(call(PLUGIN, "UpdatePodSandbox"), status(UNIMPLEMENTED, "method UpdatePodSandbox"));
    let beta = "nri.pkg.api.v1beta1.Plugin";
    assert_eq!(call(beta, "Configure"), status(UNIMPLEMENTED, &format!("service {beta}")));
    let long = "x".repeat(100_000);
    let Err(CallError::Status { code: UNIMPLEMENTED, message }) = call(PLUGIN, &long) else {
        panic!("expected UNIMPLEMENTED")
    };
    assert_eq!(message.len(), 1024);
    assert_eq!(run(&plugin, "web", TIME_LIMIT), Ok(Empty {}));
    assert!(connection.is_open());
}

#[test]
fn events_without_a_subscription_are_answered_and_ignored() {
    let (plugin, connection) = connected();
    for event in [0, event::POST_CREATE_CONTAINER, 4711, -1] {
        let container = Some(Container::default());
        let request = StateChangeEvent { event, pod: Some(PodSandbox::new("id", "shop", "web")), container };
        assert_eq!(plugin.call("StateChange", &request, TIME_LIMIT), Ok(Empty {}));
    }
    // Only the connection and the synchronization are recorded.
    assert_eq!(connection.recorder.events().len(), 2, "{:?}", connection.recorder.events());
}

#[test]
fn invalid_requests_are_answered_with_an_error() {
    let (plugin, connection) = connected();
    let missing = plugin.call::<Empty>("RunPodSandbox", &PodSandboxRequest { pod: None }, TIME_LIMIT);
    assert_eq!(missing, status(INVALID_ARGUMENT, "RunPodSandbox: the pod is missing"));
    for method in ["RunPodSandbox", "StateChange", "Synchronize", "Configure"] {
        // The payloads are: a field with a length of 127 bytes and no content; a name that is not UTF-8; a protobuf
        // group.
        for payload in [&[0x12, 0x7f][..], &[0x0a, 3, 0x12, 1, 0xff], &[0x0b]] {
            let answer = plugin.call_service::<Empty>(PLUGIN, method, payload.to_vec(), TIME_LIMIT);
            let is_invalid = matches!(answer, Err(CallError::Status { code: INVALID_ARGUMENT, .. }));
            // `Configure` may accept the second payload. It has only the field with the number 1. The plugin does not
            // use this field of `ConfigureRequest`, so it does not check the field's content.
            assert!(is_invalid || method == "Configure", "{method} {payload:?} {answer:?}");
        }
    }
    assert_eq!(run(&plugin, "web", TIME_LIMIT), Ok(Empty {}));
    assert!(connection.is_open());
}

/// Returns the bytes of a ttrpc message. Kinds: 1 is a request, 2 a response, 3 data of a stream. Requests have odd and
/// increasing stream IDs.
fn message(length: u32, stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0], payload].concat()
}

#[test]
fn unexpected_messages_do_not_end_the_connection() {
    let (plugin, connection) = connected();
    // A request with an even ID, two requests with used IDs, data, a response, and two messages of unknown kinds. The
    // plugin answers them with an error, or ignores them.
    for (stream, kind) in [(2, 1), (1, 1), (3, 1), (1, 3), (1, 2), (1, 0), (1, 200)] {
        plugin.send_frame(&message(2, stream, kind, b"\x12\x7f")).unwrap();
    }
    // A frame without content, and a frame of a connection ID that the plugin does not use.
    plugin.send_frame(&[]).unwrap();
    plugin.send_bytes(b"\0\0\0\x07\0\0\0\x03abc").unwrap();
    assert_eq!(run(&plugin, "web", TIME_LIMIT), Ok(Empty {}));
    assert!(connection.is_open());
    assert_eq!(plugin.violation(), None);
}

#[test]
fn damaged_requests_do_not_end_the_connection() {
    let (plugin, connection) = connected();
    let request = b"\x0a\x1bnri.pkg.api.v1alpha1.Plugin\x12\x0bStateChange\
                    \x1a\x24\x08\x01\x12\x20\x0a\x02s2\x12\x03web\x42\x0f\x2a\x0d\x0a\x07network\x12\x02/n\x52\x0410::";
    // The random number generator of Numerical Recipes, so that the requests are the same in each run.
    let mut random = 1_u32;
    let mut random = |limit: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize % limit
    };
    for stream in (101..).step_by(2).take(5000) {
        let mut damaged = request.to_vec();
        for _ in 0..=random(3) {
            // The last 40 bytes of the request are the end of the method's name, and the payload with its tag and
            // length.
            let index = damaged.len() - 1 - random(40);
            damaged[index] = u8::try_from(random(256)).unwrap();
        }
        damaged.truncate(damaged.len() - random(5));
        let length = u32::try_from(damaged.len()).unwrap();
        plugin.send_frame(&message(length, stream, 1, &damaged)).unwrap();
    }
    // The requests above had the IDs from 101. This request has a lower ID, so it is refused.
    assert!(matches!(run(&plugin, "web", TIME_LIMIT), Err(CallError::Status { code: INVALID_ARGUMENT, .. })));
    assert!(connection.is_open());
}

#[test]
fn frames_and_messages_that_are_too_long_end_the_connection() {
    for (bytes, expected) in [
        (
            b"\0\0\0\x01\0\x40\0\x0b".to_vec(),
            "the container runtime sent a frame of 4194315 bytes, which is longer than NRI allows; check that the socket is that of NRI",
        ),
        (
            b"HTTP/1.1 400 Bad Request".to_vec(),
            "the container runtime sent a frame of 791752241 bytes, which is longer than NRI allows; check that the socket is that of NRI",
        ),
        (
            [&b"\0\0\0\x01\0\0\0\x0a"[..], &message((4 << 20) + 1, 99, 1, b"")].concat(),
            "the container runtime sent a message of 4194305 bytes",
        ),
    ] {
        let (plugin, connection) = connected();
        plugin.send_bytes(&bytes).unwrap();
        assert_eq!(connection.failure(), expected);
    }
}

#[test]
fn the_longest_message_is_read() {
    let (plugin, _connection) = connected();
    let mut pod = PodSandbox::new("id", "shop", "web");
    pod.annotations.insert("text".to_owned(), "a".repeat((4 << 20) - 600));
    let request = PodSandboxRequest { pod: Some(pod) };
    assert_eq!(plugin.call("RunPodSandbox", &request, TIME_LIMIT), Ok(Empty {}));
}

#[test]
fn a_message_that_stays_incomplete_ends_the_connection() {
    let (plugin, connection) = connected();
    plugin.send_bytes(b"\0\0\0\x01\0\0\0").unwrap();
    let expected = "the container runtime did not complete a message within 10s";
    assert_eq!(connection.failure(), expected);
}

#[test]
fn a_connection_that_is_closed_within_a_frame_ends_without_an_error() {
    let (plugin, connection) = connected();
    plugin.send_bytes(b"\0\0\0\x01\0\0").unwrap();
    plugin.close();
    assert_eq!(connection.ended().unwrap(), Disconnected::Closed);
}

const REQUESTS: usize = 100;
/// The plugin runs at most this number of calls of its handler at the same time.
const MAX_CALLS: usize = 64;

#[test]
fn requests_are_handled_at_the_same_time_up_to_a_limit() {
    let (plugin, connection) = connected();
    let (send, answers) = channel();
    thread::scope(|scope| {
        for _ in 0..REQUESTS {
            scope.spawn(|| send.send(run(&plugin, "held", TIME_LIMIT)).unwrap());
        }
        let reported = || connection.recorder.events().iter().filter(|event| *event == "run shop/held").count();
        let started = Instant::now();
        while reported() < MAX_CALLS && started.elapsed() < TIME_LIMIT {
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(Duration::from_millis(100));
        // No more than the limit is passed to the handler before the first call is finished.
        assert_eq!(reported(), MAX_CALLS);
        connection.recorder.permits.add_permits(REQUESTS);
        for _ in 0..REQUESTS {
            assert_eq!(answers.recv_timeout(TIME_LIMIT).unwrap(), Ok(Empty {}));
        }
        assert_eq!(reported(), REQUESTS);
    });
}

#[test]
fn the_stop_of_a_pod_is_handled_while_the_start_of_the_pod_waits() {
    let (plugin, connection) = connected();
    thread::scope(|scope| {
        let start = scope.spawn(|| run(&plugin, "held", TIME_LIMIT));
        connection.recorder.wait_for("run shop/held");
        let request = PodSandboxRequest { pod: Some(PodSandbox::new("id", "shop", "held")) };
        assert_eq!(plugin.call("StopPodSandbox", &request, TIME_LIMIT), Ok(Empty {}));
        connection.recorder.permits.add_permits(1);
        assert_eq!(start.join().unwrap(), Ok(Empty {}));
    });
}

#[test]
fn starts_that_the_plugin_could_not_answer_are_reported() {
    let (plugin, connection) = connected();
    thread::scope(|scope| {
        let start = scope.spawn(|| run(&plugin, "held", TIME_LIMIT));
        connection.recorder.wait_for("run shop/held");
        plugin.close();
        assert_eq!(start.join().unwrap(), Err(CallError::Closed));
    });
    assert_eq!(connection.ended().unwrap(), Disconnected::Closed);
    assert_eq!(connection.recorder.events().last().unwrap(), "unanswered shop/held");
}

#[test]
fn a_request_with_almost_no_time_left_is_refused_at_once() {
    let (plugin, _connection) = connected();
    let answer = run(&plugin, "stuck", Duration::from_millis(1));
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(run(&plugin, "web", TIME_LIMIT), Ok(Empty {}));
}

#[test]
fn a_runtime_without_timeouts_gets_an_answer() {
    // A request without a timeout has the value 0 in the field for the timeout or, as here, no such field. In both
    // cases, the plugin answers within 2 s, NRI's default timeout.
    let (plugin, connection) = connected();
    let request = b"\x0a\x1bnri.pkg.api.v1alpha1.Plugin\x12\x0dRunPodSandbox\x1a\x09\x0a\x07\x12\x05stuck";
    let length = u32::try_from(request.len()).unwrap();
    plugin.send_frame(&message(length, 99, 1, request)).unwrap();
    connection.recorder.wait_for("run /stuck");
    thread::sleep(Duration::from_millis(2100));
    plugin.close();
    assert_eq!(connection.ended().unwrap(), Disconnected::Closed);
    // The plugin answered before the connection ended: otherwise, the start would be reported as unanswered.
    assert!(!connection.recorder.events().iter().any(|event| event.starts_with("unanswered")));
}
