//! A command with a closed pipe as its output does not panic, and does not print an error about the pipe.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use netpol_api::WaitOutcome;
use serde_json::json;

use crate::agents::{Agent, Behavior, Cluster};
use crate::fixtures::{denied, endpoint, list, policies, record, shadow, status, waited};

/// Returns the write end of a pipe that no process reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    OwnedFd::from(writer).into()
}

#[test]
fn no_command_panics_if_its_output_is_closed() {
    let agent = |node: &str| {
        Agent::default()
            .responds("/v1/status", &status(node))
            .responds("/v1/endpoints", &list(node, &[endpoint("shop/web-0", "veth1", "10.0.0.1")]))
            .responds("/v1/policies", &policies(node, &["shop/db-0"], 1))
            .responds("/v1/shadow", &shadow(node, 1))
            .responds("/v1/wait", &waited(node, WaitOutcome::Met))
            .flows((0..200).map(|number| record(denied(&format!("12:00:00.{number:03}"), node))))
    };
    let cluster = Cluster::start(&[
        ("n1", Behavior::Responds, agent("n1")),
        ("n2", Behavior::Fails("no socket"), Agent::default()),
    ]);
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "web-0"},
            "spec": {"containers": [{"name": "c", "image": "x"}]}, "status": {"podIP": "10.0.0.1", "phase": "Running"}}),
    ] {
        cluster.server.apply(object).expect("an object");
    }
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/app.yaml");
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cilium.yaml");
    let explain = ["explain", "-n", "shop", "--from", "pod/web-0", "--to", "pod/web-0", "--port", "80"];
    let explain_cluster = ["explain", "-n", "shop", "--from", "pod/web-0", "--to", "192.0.2.1", "--port", "80"];
    for arguments in [
        &["flows", "-A"][..],
        &["flows", "-A", "-o", "wide"],
        &["flows", "-A", "-o", "json", "--follow"],
        &["top", "-A"],
        &["top", "-A", "-o", "json"],
        &["status"],
        &["status", "-o", "json"],
        &["endpoints", "-A"],
        &["policies", "-A"],
        &["shadow", "report", "-A"],
        &["wait", "--for", "policy/shop/db"],
        &["wait", "--for", "policy/shop/db", "-o", "json"],
        &["why", "web-0", "-n", "shop"],
        &["suspend", "-n", "shop", "--for", "1m", "--reason", "a test"],
        &["resume", "-n", "shop"],
        &explain,
        &explain_cluster,
        &["lint", "-f", manifests, "-f", policies],
        &["matrix", "-f", manifests, "-f", policies],
        &["matrix", "-f", manifests, "-p", "80"],
        &["completion", "bash"],
        &["--help"],
        &["flows", "--help"],
        &["--version"],
        &["flows", "--unknown"],
    ] {
        let mut command: Command = cluster.command(arguments);
        check(command.stdout(closed_pipe()), arguments);
    }
    // These commands also print to standard error: nodes without a response, diagnostics, and wrong usage. Here,
    // standard error is closed, too.
    for arguments in [
        &["flows", "-A"][..],
        &["status"],
        &["wait", "--for", "policy/shop/db"],
        &["lint", "-f", manifests, "-f", policies],
        &["matrix", "-f", "/nonexistent"],
        &["flows", "--unknown"],
    ] {
        let mut command = cluster.command(arguments);
        check(command.stdout(closed_pipe()).stderr(closed_pipe()), arguments);
    }
}

/// Checks that a command has an exit code of netpol, and prints no error about its pipes.
fn check(command: &mut Command, arguments: &[&str]) {
    let output = command.output().expect("netpol runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    // The exit codes of netpol are 0 to 5, except for bugs. After a panic, the exit code is 101. A process that was
    // killed by a signal, such as SIGPIPE, has no exit code.
    assert!(code.is_some_and(|code| code <= 5), "{arguments:?}: {code:?}, {error}");
    assert!(!error.contains("panicked") && !error.contains("roken pipe"), "{arguments:?}: {error}");
}
