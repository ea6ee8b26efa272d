//! Tests `netpol suspend` and `netpol resume`. These commands suspend and resume the enforcement of policies by
//! changing annotations of a Namespace, with the user's rights. A suspension of the whole cluster is an annotation of
//! the Namespace in which the agents run, here `kube-system`.

use std::time::{Duration, Instant};

use expect_test::expect;
use netpol_apiserver::{Effect, Fault, Options, Resource, Rules, Verb};
use serde_json::{Value, json};

use crate::agents::{Agent, Behavior, Cluster, NAMESPACE};

/// The time of the API server in these tests. `netpol` must use this time, not the clock of the user's machine.
const DATE: &str = "Tue, 01 Jan 2030 12:00:00 GMT";

/// Returns a cluster with an agent in `kube-system`, and with the namespaces `shop` and `ops`, which have no agents.
fn cluster(options: Options) -> Cluster {
    let options = Options { user: "jane".to_owned(), date: Some(DATE), ..options };
    let cluster = Cluster::with_options(&[("n1", Behavior::Responds, Agent::default())], options);
    for name in [NAMESPACE, "shop", "ops"] {
        cluster
            .server
            .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
            .expect("a namespace");
    }
    cluster
}

fn annotations(cluster: &Cluster, namespace: &str) -> Value {
    let namespace = cluster.server.get(Resource::Namespaces, "", namespace).expect("a namespace");
    namespace["metadata"]["annotations"].clone()
}

/// Returns the rights of a user that may read and change only one Namespace object.
fn owner(namespace: &str) -> Rules {
    Rules::none().allow_in(Some(namespace), &[""], &["namespaces"], &["get", "patch"])
}

#[test]
fn the_owner_of_a_namespace_can_suspend_it_and_the_end_depends_on_the_clock_of_the_api_server() {
    let cluster = cluster(Options::default());
    cluster.server.set_rules(owner("shop"));
    let run = cluster.netpol(&["suspend", "-n", "shop", "--for", "30m", "--reason", "it's incident 4711"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    expect![[r#"
        enforcement of namespace shop is suspended until 2030-01-01T12:30:00Z
        suspended by jane at 2030-01-01T12:00:00Z: it's incident 4711
        same as:  kubectl --context test annotate namespace shop netpol.io/suspended-until=2030-01-01T12:30:00Z netpol.io/suspended-reason='it'\''s incident 4711' --overwrite
        to end:   netpol resume --context test -n shop
    "#]]
    .assert_eq(&run.out);
    let expected = json!({
        "netpol.io/suspended-until": "2030-01-01T12:30:00Z",
        "netpol.io/suspended-reason": "it's incident 4711",
    });
    assert_eq!(annotations(&cluster, "shop"), expected);
    let run = cluster.netpol(&["resume", "-n", "shop", "-o", "json"]);
    let output: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(
        (&output["scope"], &output["until"], &output["user"], &output["stillSuspended"]),
        (&json!("namespace"), &json!(null), &json!("jane"), &json!([]))
    );
    let unknown = output["stillSuspendedError"].as_str().unwrap_or_default();
    assert!(unknown.contains("namespaces \"kube-system\" is forbidden"), "{output}");
    assert!(annotations(&cluster, "shop")["netpol.io/suspended-until"].is_null());
    let run = cluster.netpol(&["resume", "-n", "shop"]);
    assert!(run.out.starts_with("enforcement of namespace shop was not suspended\n"), "{}", run.out);
    assert!(
        run.out.contains("\nother suspensions are unknown: namespaces \"kube-system\" is forbidden"),
        "{}",
        run.out
    );
    let run = cluster.netpol(&["suspend", "--cluster", "--for", "1h", "--reason", "x"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("it needs the verbs get and patch on this Namespace"), "{}", run.err);
}

#[test]
fn suspensions_of_the_cluster_are_refused_if_the_given_agent_namespace_has_no_agents() {
    let cluster = cluster(Options::default());
    let suspend = ["suspend", "--cluster", "--for", "1h", "--reason", "x", "--agent-namespace"];
    let run = cluster.netpol(&[&suspend[..], &["ops"]].concat());
    assert_eq!((run.code, run.out.as_str()), (3, ""));
    assert!(run.err.contains("namespace ops has no pod with the label app=netpol-agent"), "{}", run.err);
    assert_eq!(annotations(&cluster, "ops"), json!(null));
    let run = cluster.netpol(&["resume", "--cluster", "--agent-namespace", "ops"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("set --agent-namespace"), "{}", run.err);
    // Without the right to list pods, the command cannot check that the agents run in this namespace. It continues,
    // because a suspension is urgent in an incident.
    cluster.server.set_rules(owner("ops"));
    let run = cluster.netpol(&[&suspend[..], &["ops"]].concat());
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.err.starts_with("netpol: cannot check that agents run in namespace ops: pods is forbidden"),
        "{}",
        run.err
    );
    assert!(
        run.out.contains("\nto end:   netpol resume --context test --cluster --agent-namespace ops\n"),
        "{}",
        run.out
    );
    // Wrong usage: no scope, two scopes, a duration that is too long, a reason of two lines.
    for arguments in [
        &["--for", "1h"][..],
        &["-n", "a", "--cluster", "--for", "1h"],
        &["-n", "a", "--for", "25h"],
        &["-n", "a", "--for", "1h", "--reason", "two\nlines"],
    ] {
        let reason = if arguments.contains(&"--reason") { &[][..] } else { &["--reason", "x"] };
        let run = cluster.netpol(&[&["suspend"], arguments, reason].concat());
        assert_eq!(run.code, 2, "{arguments:?}");
    }
}

#[test]
fn resume_reports_other_suspensions_that_still_apply() {
    let cluster = cluster(Options::default());
    for scope in [&["-n", "shop"][..], &["-n", NAMESPACE], &["--cluster"]] {
        let reason = format!("reason of {}", scope[scope.len() - 1]);
        let run = cluster.netpol(&[&["suspend", "--for", "1h", "--reason", &reason], scope].concat());
        assert_eq!(run.code, 0, "{}", run.err);
        // The suspensions of the cluster and of kube-system are both annotations of kube-system, with one annotation
        // for the reason.
        let replaces = run.out.contains("replaces the reason of another suspension: reason of kube-system\n");
        assert_eq!(replaces, scope == ["--cluster"], "{}", run.out);
    }
    expect![[r#"
        the suspension of namespace shop is removed; its end was 2030-01-01T13:00:00Z
        enforcement of the cluster is still suspended until 2030-01-01T13:00:00Z
        to end:      netpol resume --context test --cluster
        changed by jane at 2030-01-01T12:00:00Z
        same as:     kubectl --context test annotate namespace shop netpol.io/suspended-until- netpol.io/suspended-reason-
        to suspend:  netpol suspend --context test -n shop --for 30m --reason TEXT
    "#]]
    .assert_eq(&cluster.netpol(&["resume", "-n", "shop"]).out);
    expect![[r#"
        enforcement of the cluster is resumed; it was suspended until 2030-01-01T13:00:00Z
        enforcement of namespace kube-system is still suspended until 2030-01-01T13:00:00Z
        to end:      netpol resume --context test -n kube-system
        changed by jane at 2030-01-01T12:00:00Z
        same as:     kubectl --context test annotate namespace kube-system netpol.io/suspend-cluster-until-
        to suspend:  netpol suspend --context test --cluster --for 30m --reason TEXT
    "#]]
    .assert_eq(&cluster.netpol(&["resume", "--cluster"]).out);
    // The reason is kept, because the suspension of namespace kube-system uses the same annotation.
    assert_eq!(annotations(&cluster, NAMESPACE)["netpol.io/suspended-reason"], "reason of --cluster");
    cluster.netpol(&["resume", "-n", NAMESPACE]);
    assert!(annotations(&cluster, NAMESPACE)["netpol.io/suspended-reason"].is_null());
    // A suspension with an end that has passed.
    let expired = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "annotations": {"netpol.io/suspended-until": "2030-01-01T11:00:00Z"}}});
    cluster.server.apply(expired).expect("a namespace");
    let run = cluster.netpol(&["resume", "-n", "shop"]);
    let expected = "enforcement of namespace shop was not suspended: removed an annotation with the time 2030-01-01T11:00:00Z\nchanged by jane";
    assert!(run.out.starts_with(expected), "{}", run.out);
}

/// `netpol` requests the user's name with a `SelfSubjectReview`. The API server of this test does not respond to it.
#[test]
fn suspend_needs_responses_of_the_api_server_but_not_the_name_of_the_user() {
    let cluster = cluster(Options { self_reviews: false, ..Options::default() });
    let suspend = ["suspend", "-n", "shop", "--for", "1h", "--reason", "x", "--request-timeout", "1s"];
    let run = cluster.netpol(&suspend);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("\nsuspended by this user at 2030-01-01T12:00:00Z: x\n"), "{}", run.out);
    for verb in [Verb::Patch, Verb::Get] {
        cluster.server.clear_faults();
        cluster.server.inject(Fault::new(Effect::hang()).verb(verb).resource(Resource::Namespaces));
        let start = Instant::now();
        let run = cluster.netpol(&suspend);
        assert_eq!((run.code, run.out.as_str()), (3, ""));
        assert!(run.err.contains("the API server did not respond within 1s"), "{}", run.err);
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}
