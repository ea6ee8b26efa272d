//! Tests how `netpol` finds and reaches agents, and how it reports nodes without a response.

use std::time::{Duration, Instant};

use expect_test::expect;
use netpol_api::WaitOutcome;
use netpol_apiserver::{Options, Resource, Rules};
use serde_json::{Value, json};

use crate::agents::{Agent, Behavior, Cluster, NAMESPACE, REQUEST_TIMEOUT, no_home};
use crate::fixtures::{status, waited};

/// Returns an agent that responds to status requests only.
fn agent(node: &str) -> Agent {
    Agent::default().responds("/v1/status", &status(node))
}

#[test]
fn one_silent_node_of_20_is_reported_within_2_seconds() {
    let names: Vec<String> = (1..=20).map(|number| format!("n{number:02}")).collect();
    let nodes: Vec<_> = names
        .iter()
        .map(|name| {
            let behavior = if name == "n07" { Behavior::Silent } else { Behavior::Responds };
            (name.as_str(), behavior, agent(name))
        })
        .collect();
    let cluster = Cluster::start(&nodes);
    // The machine may be busy for a while, so the fastest of up to five runs counts.
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let run = cluster.netpol(&["status"]);
        fastest = fastest.min(start.elapsed());
        assert_eq!(run.code, 5, "{}", run.err);
        assert_eq!(run.out.lines().count(), 21, "a heading and a row for each node: {}", run.out);
        assert!(run.out.lines().nth(1).is_some_and(|line| line.starts_with("n07   no response")), "{}", run.out);
        let expected = "\
node n07: no response within 1500ms; see `kubectl --context test -n kube-system logs netpol-agent-n07`
netpol: 1 node did not respond; the output is about the others (exit code 5)
";
        assert_eq!(run.err, expected);
        if fastest < Duration::from_secs(2) {
            break;
        }
    }
    assert!(fastest >= REQUEST_TIMEOUT && fastest < Duration::from_secs(2), "{fastest:?}");
}

#[test]
fn each_node_without_a_response_is_reported_with_the_cause() {
    let cluster = Cluster::start(&[
        ("n1", Behavior::Responds, agent("n1")),
        ("n2", Behavior::Rejected(403), agent("n2")),
        ("n3", Behavior::Cut(40), agent("n3")),
        ("n4", Behavior::Fails("error: unrecognized subcommand 'connect'"), agent("n4")),
        ("n5", Behavior::Pending, agent("n5")),
        ("n6", Behavior::Hangs, agent("n6")),
        ("n7", Behavior::Responds, Agent::default()),
        ("n8", Behavior::Responds, Agent::default().responds("/v1/status", &json!({"version": 1}))),
    ]);
    // Node n9 has no agent.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9"}});
    cluster.server.apply(node).expect("a node");
    let run = cluster.netpol(&["status", "--request-timeout", "700ms", "-o", "json"]);
    assert_eq!(run.code, 5);
    expect![[r#"
        node n2: forbidden; an administrator can grant it with deploy/components/viewer
        node n3: connection closed: the API server closed the connection to the pod
        node n4: connection closed: error: unrecognized subcommand 'connect' (command terminated with non-zero exit code: exit status 1)
        node n5: pod netpol-agent-n5 is Pending; see `kubectl --context test -n kube-system describe pod netpol-agent-n5`
        node n6: no response within 700ms; see `kubectl --context test -n kube-system logs netpol-agent-n6`
        node n7: the agent rejected the request: no such path
        node n8: the agent's response is not valid: invalid type: integer `1`, expected a string at line 1 column 12 (the agent may have another version)
        node n9: no agent runs there; policies are not enforced on this node
        netpol: 8 nodes did not respond; the output is about the others (exit code 5)
    "#]].assert_eq(&run.err);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(output["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(output["failures"].as_array().map(Vec::len), Some(8));
}

#[test]
fn without_any_response_the_exit_code_is_3() {
    let cluster = Cluster::start(&[("n1", Behavior::Fails("no socket"), Agent::default())]);
    for arguments in
        [&["status"][..], &["flows"], &["endpoints"], &["policies"], &["shadow", "report"], &["top", "--once"]]
    {
        let run = cluster.netpol(arguments);
        let expected = "node n1: connection closed: no socket (command terminated with non-zero exit code: exit status 1)\n\
                        netpol: no agent responded\n";
        assert_eq!((run.code, run.err.as_str(), run.out.as_str()), (3, expected, ""), "{arguments:?}");
    }
}

#[test]
fn agents_are_found_by_label_namespace_and_node() {
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent("n1")), ("n2", Behavior::Responds, agent("n2"))]);
    let run = cluster.netpol(&["status", "--node", "n2"]);
    assert_eq!((run.code, run.err.as_str(), run.out.lines().count()), (0, "", 2), "{}", run.out);
    let run = cluster.netpol(&["status", "--node", "n2", "--node", "n3"]);
    assert_eq!(run.code, 5);
    assert!(
        run.err.starts_with("node n3: no agent runs there; see `kubectl --context test -n kube-system get pods"),
        "{}",
        run.err
    );
    let run = cluster.netpol(&["status", "--agent-namespace", "other"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("namespace other has no pod with the label app=netpol-agent"), "{}", run.err);
    let missing = cluster.netpol(&["status", "--context", "absent"]);
    assert_eq!(missing.code, 3);
    assert!(missing.err.contains("absent"), "{}", missing.err);
    // While an agent is replaced, its node has two pods. The pod that is being deleted is ignored.
    let old = json!({
        "apiVersion": "v1", "kind": "Pod", "status": {"phase": "Running"},
        "metadata": {"namespace": NAMESPACE, "name": "netpol-agent-old", "labels": {"app": "netpol-agent"},
            "deletionTimestamp": "2026-11-29T12:00:00Z"},
        "spec": {"nodeName": "n1", "containers": [{"name": "agent", "image": "x"}]},
    });
    cluster.server.apply(old).expect("a pod");
    let run = cluster.netpol(&["status"]);
    assert_eq!((run.code, run.out.lines().count()), (0, 3), "{}", run.err);
}

#[test]
fn status_needs_only_a_role_in_the_namespace_of_the_agents() {
    let role = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/components/viewer/rbac.yaml"));
    let role = role.expect("deploy/components/viewer/rbac.yaml");
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent("n1"))]);
    cluster.server.set_rules(Rules::from_yaml(&role).expect("a role"));
    let run = cluster.netpol(&["status"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{}", run.out);
    cluster.server.set_rules(Rules::none());
    let run = cluster.netpol(&["status"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("cannot list the agents: pods is forbidden: User \"jane\""), "{}", run.err);
    assert!(run.err.contains("deploy/components/viewer"), "{}", run.err);
    cluster.server.set_rules(Rules::none().allow(&[""], &["pods"], &["list"]));
    let run = cluster.netpol(&["status"]);
    assert!(run.err.contains("cannot create resource \"pods/exec\""), "{}", run.err);
}

#[test]
fn an_api_server_with_only_version_4_of_the_exec_protocol_works() {
    let options = Options { exec_protocols: &["v4.channel.k8s.io"], ..Options::default() };
    let cluster = Cluster::with_options(&[("n1", Behavior::Responds, agent("n1"))], options);
    let run = cluster.netpol(&["status"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
}

#[test]
fn status_with_a_socket_needs_no_cluster() {
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent("n1"))]);
    // Only the socket leads to the agent now.
    cluster.server.delete(Resource::Pods, NAMESPACE, "netpol-agent-n1");
    let socket = cluster.socket("n1");
    let socket = socket.to_str().expect("text");
    let mut command = cluster.command(&["status", "--socket", socket]);
    let output = command.env_remove("KUBECONFIG").env("HOME", no_home()).output().expect("netpol runs");
    assert!(output.status.success(), "{output:?}");
    let mut command = cluster.command(&["status"]);
    let output = command.env_remove("KUBECONFIG").env("HOME", no_home()).output().expect("netpol runs");
    assert_eq!(output.status.code(), Some(3));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("no kubeconfig found; set --kubeconfig or $KUBECONFIG, or use --socket"), "{error}");
    let run = cluster.netpol(&["status", "--socket", socket, "--node", "n1"]);
    assert_eq!(run.code, 2, "{}", run.err);
}

#[test]
fn help_of_the_kubectl_plugin_has_the_command_kubectl_netpol() {
    let directory = tempfile::tempdir().expect("a directory");
    let plugin = directory.path().join("kubectl-netpol");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_netpol"), &plugin).expect("a link");
    let output = std::process::Command::new(plugin).args(["flows", "--help"]).output().expect("netpol runs");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(help.contains("Usage: kubectl netpol flows"), "{help}");
}

#[test]
fn wait_combines_the_results_of_all_nodes() {
    let agent = |node: &str, outcome| Agent::default().responds("/v1/wait", &waited(node, outcome));
    let responds = Behavior::Responds;
    for (outcome_of_n2, code, out, err) in [
        (WaitOutcome::Met, 0, "networkpolicy shop/db enforced on 2 nodes (2 pods, 250.0 ms)\n", ""),
        (WaitOutcome::Timeout, 1, "", "error: node n2: timed out after 1s waiting for networkpolicy shop/db\n"),
        // The agent of n2 will not enforce the policy, for example because it runs with `--observe`. `Never` is ignored
        // if another node reports another result.
        (WaitOutcome::Never, 0, "networkpolicy shop/db enforced on n1 (generation 12, 1 pod, 250.0 ms)\n", ""),
    ] {
        let cluster = Cluster::start(&[
            ("n1", responds.clone(), agent("n1", WaitOutcome::Met)),
            ("n2", responds.clone(), agent("n2", outcome_of_n2)),
        ]);
        let run = cluster.netpol(&["wait", "--for", "policy/shop/db", "--timeout", "1s"]);
        assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (code, out, err), "{outcome_of_n2:?}");
        assert_eq!(cluster.requests(), ["/v1/wait?timeout=1s&for=policy/shop/db"; 2]);
    }
    let cluster = Cluster::start(&[
        ("n1", responds, agent("n1", WaitOutcome::Met)),
        ("n2", Behavior::Fails("no socket"), Agent::default()),
    ]);
    let run = cluster.netpol(&["wait", "--for", "policy/shop/db"]);
    assert_eq!(run.code, 5, "{}", run.err);
}

#[test]
fn wait_reports_nodes_without_an_agent() {
    let agent_of_n1 = Agent::default().responds("/v1/wait", &waited("n1", WaitOutcome::Met));
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent_of_n1)]);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}});
    cluster.server.apply(node).expect("a node");
    let run = cluster.netpol(&["wait", "--for", "policy/shop/db"]);
    assert_eq!(run.code, 5, "{}", run.out);
    assert!(
        run.err.starts_with("node n2: no agent runs there; policies are not enforced on this node\n"),
        "{}",
        run.err
    );
    // A pod is on only one node, and --node selects only one node. So other nodes without an agent do not matter.
    for arguments in [&["--for", "pod/shop/db-0"][..], &["--for", "policy/shop/db", "--node", "n1"]] {
        let run = cluster.netpol(&[&["wait"], arguments].concat());
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{arguments:?}");
    }
    // Without the right to list nodes, nodes without an agent are not found.
    cluster.server.set_rules(Rules::all().without(Resource::Nodes, None));
    let run = cluster.netpol(&["wait", "--for", "policy/shop/db"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.err.starts_with(
            "cannot check which nodes have no agent, because the nodes cannot be listed: nodes is forbidden"
        ),
        "{}",
        run.err
    );
}

#[test]
fn hints_can_be_pasted_into_a_shell() {
    let cluster = Cluster::start(&[("n1", Behavior::Responds, agent("n1"))]);
    let run = cluster.netpol(&["status", "--node", "n9", "--agent-namespace", "a;b"]);
    assert!(run.err.contains("see `kubectl --context test -n 'a;b' get pods"), "{}", run.err);
}
