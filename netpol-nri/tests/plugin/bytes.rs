//! Sends the runtime's frames of a conversation to the plugin, and compares the bytes that the plugin sends with the
//! plugin's frames of the conversation. The conversation was encoded by hand, from the published protocols.
//!
//! Each item of [`CONVERSATION`] is a frame. A frame consists of:
//! * connection ID and length (`pkg/net/multiplex/mux.go` of NRI)
//! * length, stream ID, type and flags of a message (`PROTOCOL.md` of ttrpc)
//! * a `Request` or `Response`, with the tag and the length of each field (`request.proto` of ttrpc). The field
//!   `payload` contains a message of NRI (`pkg/api/api.proto`)

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use crate::recorder::{Connection, Recorder, options};
use netpol_nri::Disconnected;

/// A frame, by its sender.
enum Frame {
    Plugin(&'static [u8]),
    Runtime(&'static [u8]),
}
use Frame::{Plugin, Runtime};

const CONVERSATION: [Frame; 21] = [
    // Runtime.RegisterPlugin {plugin_name: "netpol", plugin_idx: "99"}, with a timeout of 10^9 ns = 0x3b9aca00.
    Plugin(
        b"\0\0\0\x02\0\0\0\x4c\0\0\0\x42\0\0\0\x01\x01\0\x0a\x1cnri.pkg.api.v1alpha1.Runtime\x12\x0eRegisterPlugin\
          \x1a\x0c\x0a\x06netpol\x12\x0299\x20\x80\x94\xeb\xdc\x03",
    ),
    // A response without fields means success.
    Runtime(b"\0\0\0\x02\0\0\0\x0a\0\0\0\0\0\0\0\x01\x02\0"),
    // Plugin.Configure {runtime_name: "containerd", runtime_version: "2.2.0", registration_timeout: 5000 ms = 0x1388,
    // request_timeout: 2000 ms = 0x7d0}.
    Runtime(
        b"\0\0\0\x01\0\0\0\x4d\0\0\0\x43\0\0\0\x01\x01\0\x0a\x1bnri.pkg.api.v1alpha1.Plugin\x12\x09Configure\
          \x1a\x19\x12\x0acontainerd\x1a\x052.2.0\x20\x88\x27\x28\xd0\x0f",
    ),
    // ConfigureResponse {events: bits 0 to 3, which are RUN_POD_SANDBOX, STOP_POD_SANDBOX, REMOVE_POD_SANDBOX and
    // CREATE_CONTAINER}.
    Plugin(b"\0\0\0\x01\0\0\0\x0e\0\0\0\x04\0\0\0\x01\x02\0\x12\x02\x10\x0f"),
    // Plugin.Synchronize {pods: [{id: "s1", name: "old", namespace: "shop"}], more: true}: a further part of the list
    // follows.
    Runtime(
        b"\0\0\0\x01\0\0\0\x4b\0\0\0\x41\0\0\0\x03\x01\0\x0a\x1bnri.pkg.api.v1alpha1.Plugin\x12\x0bSynchronize\
          \x1a\x13\x0a\x0f\x0a\x02s1\x12\x03old\x22\x04shop\x18\x01\x20\0",
    ),
    // SynchronizeResponse {more: true}.
    Plugin(b"\0\0\0\x01\0\0\0\x0e\0\0\0\x04\0\0\0\x03\x02\0\x12\x02\x10\x01"),
    // Plugin.Synchronize {containers: [{id: "c1"}]}. The plugin ignores a container without a sandbox.
    Runtime(
        b"\0\0\0\x01\0\0\0\x3c\0\0\0\x32\0\0\0\x05\x01\0\x0a\x1bnri.pkg.api.v1alpha1.Plugin\x12\x0bSynchronize\
          \x1a\x06\x12\x04\x0a\x02c1",
    ),
    Plugin(b"\0\0\0\x01\0\0\0\x0a\0\0\0\0\0\0\0\x05\x02\0"),
    // Plugin.StateChange {event: RUN_POD_SANDBOX, pod: {id: "s2", name: "shown", uid: "u2", namespace: "shop",
    // labels: {"a": "b"}, linux: {namespaces: [{type: "network", path: "/n"}]}, pid: 9, ips: ["10.1.0.5"]}}.
    Runtime(
        b"\0\0\0\x01\0\0\0\x74\0\0\0\x6a\0\0\0\x07\x01\0\x0a\x1bnri.pkg.api.v1alpha1.Plugin\x12\x0bStateChange\
          \x1a\x3e\x08\x01\x12\x3a\x0a\x02s2\x12\x05shown\x1a\x02u2\x22\x04shop\x2a\x06\x0a\x01a\x12\x01b\
          \x42\x0f\x2a\x0d\x0a\x07network\x12\x02/n\x48\x09\x52\x0810.1.0.5",
    ),
    Plugin(b"\0\0\0\x01\0\0\0\x0a\0\0\0\0\0\0\0\x07\x02\0"),
    // Plugin.RunPodSandbox {pod: {id: "s3", name: "refused", namespace: "shop", labels: {"": ""}}}, in two frames.
    Runtime(b"\0\0\0\x01\0\0\0\x0c\0\0\0\x47\0\0\0\x09\x01\0\x0a\x1b"),
    Runtime(
        b"\0\0\0\x01\0\0\0\x45nri.pkg.api.v1alpha1.Plugin\x12\x0dRunPodSandbox\
          \x1a\x19\x0a\x17\x0a\x02s3\x12\x07refused\x22\x04shop\x2a\x02\x0a\0",
    ),
    // Response {status: {code: UNKNOWN, message: "the policies are not enforced"}}.
    Plugin(b"\0\0\0\x01\0\0\0\x2d\0\0\0\x23\0\0\0\x09\x02\0\x0a\x21\x08\x02\x12\x1dthe policies are not enforced"),
    // Plugin.StopPodSandbox {pod: {name: "refused", uid: "u", namespace: "shop"}}.
    Runtime(
        b"\0\0\0\x01\0\0\0\x4d\0\0\0\x43\0\0\0\x0b\x01\0\x0a\x1bnri.pkg.api.v1alpha1.Plugin\x12\x0eStopPodSandbox\
          \x1a\x14\x0a\x12\x12\x07refused\x22\x04shop\x1a\x01u",
    ),
    Plugin(b"\0\0\0\x01\0\0\0\x0a\0\0\0\0\0\0\0\x0b\x02\0"),
    // Plugin.UpdateContainer {}, a method that the plugin does not have.
    Runtime(
        b"\0\0\0\x01\0\0\0\x38\0\0\0\x2e\0\0\0\x0d\x01\0\x0a\x1bnri.pkg.api.v1alpha1.Plugin\x12\x0fUpdateContainer",
    ),
    // Response {status: {code: UNIMPLEMENTED = 12, message: "method UpdateContainer"}}.
    Plugin(b"\0\0\0\x01\0\0\0\x26\0\0\0\x1c\0\0\0\x0d\x02\0\x0a\x1a\x08\x0c\x12\x16method UpdateContainer"),
    // A request without a payload, with an even stream ID, 14.
    Runtime(b"\0\0\0\x01\0\0\0\x0a\0\0\0\0\0\0\0\x0e\x01\0"),
    // Response {status: {code: INVALID_ARGUMENT = 3, message}}.
    Plugin(
        b"\0\0\0\x01\0\0\0\x4d\0\0\0\x43\0\0\0\x0e\x02\0\x0a\x41\x08\x03\x12\x3d\
          the ID of a request must be odd, and larger than those before",
    ),
    // Data (type 3) without a payload, on stream 15.
    Runtime(b"\0\0\0\x01\0\0\0\x0a\0\0\0\0\0\0\0\x0f\x03\0"),
    Plugin(
        b"\0\0\0\x01\0\0\0\x40\0\0\0\x36\0\0\0\x0f\x02\0\x0a\x34\x08\x03\x12\x30\
          no method of the plugin has a stream of messages",
    ),
];

/// The calls of the handler during the conversation, as the [`Recorder`] records them.
const EVENTS: [&str; 6] = [
    "connected to containerd 2.2.0 Some(2s)",
    "synchronize 1: old",
    "run shop/shown",
    r#"Sandbox { id: "s2", namespace: "shop", name: "shown", uid: "u2", network_namespace: Some("/n"), host_network: false, addresses: [10.1.0.5], has_containers: false }"#,
    "run shop/refused",
    "stop shop/refused",
];

#[test]
fn the_bytes_are_those_of_the_published_protocol() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nri.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut options = options();
    options.registration_timeout = Duration::from_secs(1);
    let connection = Connection::with(&path, options, Recorder::default());
    let (mut socket, _) = listener.accept().unwrap();
    for (number, frame) in CONVERSATION.iter().enumerate() {
        match frame {
            Runtime(bytes) => socket.write_all(bytes).unwrap(),
            Plugin(expected) => {
                let mut bytes = vec![0; expected.len()];
                socket.read_exact(&mut bytes).unwrap();
                assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string(), "frame {number}");
            }
        }
    }
    drop(socket);
    assert_eq!(connection.ended().unwrap(), Disconnected::Closed);
    assert_eq!(connection.recorder.events(), EVENTS);
}
