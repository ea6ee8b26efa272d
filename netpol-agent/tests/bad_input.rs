//! What people get wrong, and what they are told.

mod node;

use node::{Node, told};

#[test]
fn a_source_that_is_not_there_is_named() {
    let node = Node::new();
    let file = node.directory.path().join("file.yaml");
    std::fs::write(&file, "").expect("it can be written");
    let not_a_directory = format!("dir:{}", file.display());
    for (source, code, says) in [
        ("dir:/no/such/path", 1, "/no/such/path: No such file or directory"),
        (not_a_directory.as_str(), 1, "Not a directory"),
        ("kube:/no/such/kubeconfig", 1, "give a kubeconfig: --source kube:PATH"),
        ("cube", 2, "write kube, kube:PATH of a kubeconfig, or dir:PATH"),
        ("dir:", 2, "or dir:PATH"),
    ] {
        let output = node.verb(&["run", "--node", "n1", "--source", source]);
        let text = told(&output);
        assert_eq!(output.status.code(), Some(code), "{source}: {text}");
        assert!(text.contains(says), "{source}: {text}");
        assert!(text.matches("No such file").count() <= 1, "each cause is told once: {text}");
        assert!(!node.pin_path.exists(), "{source}: nothing is made for what cannot start");
    }
}

#[test]
fn a_pin_path_elsewhere_is_refused_with_what_to_run() {
    let mut node = Node::new();
    node.pin_path = node.directory.path().join("pins");
    let source = format!("dir:{}", node.directory.path().display());
    let output = node.verb(&["run", "--node", "n1", "--source", &source]);
    assert_eq!(output.status.code(), Some(5), "{}", told(&output));
    assert!(told(&output).contains("mount -t bpf"), "{}", told(&output));
}

#[test]
fn status_of_nothing_says_so() {
    let node = Node::new();
    let output = node.verb(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("no agent has run here"), "{}", told(&output));
}

#[test]
fn a_strange_node_and_bad_manifests_are_told_with_file_and_line() {
    let mut node = Node::with_pods(&[1]);
    node.write("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [\n");
    node.write(
        "policy.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  \
         podSelector: {}\n  ingress:\n  - from:\n    - ipBlock: {cidr: 10.0.0.0/99}\n",
    );
    node.start(&[]);
    node.wait_log("broken.yaml:");
    node.wait_log("policy.yaml:8");
    node.end(true);
    let source = format!("dir:{}", node.directory.path().display());
    let other = node.start_aside(&["run", "--node", "n9", "--source", &source]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let text = node::end(other);
    assert!(text.contains("no pod is on this node") && text.contains("n1"), "{text}");
}

#[test]
fn without_privileges_it_says_which() {
    let node = Node::new();
    for verb in ["status", "uninstall"] {
        let output = std::process::Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
            .args([env!("CARGO_BIN_EXE_netpol-agent"), verb, "--pin-path"])
            .arg(&node.pin_path)
            .output()
            .expect("setpriv is installed");
        let text = told(&output);
        assert_eq!(output.status.code(), Some(5), "{text}");
        assert!(text.contains("CAP_NET_ADMIN") && text.contains("as root"), "{text}");
    }
}
