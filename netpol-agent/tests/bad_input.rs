//! Invalid arguments and manifests, and the messages about them.

mod node;

use node::{Node, stderr_of};

#[test]
fn a_missing_or_invalid_source_is_reported() {
    let node = Node::new();
    let file = node.directory.path().join("file.yaml");
    std::fs::write(&file, "").expect("cannot write the file");
    let not_a_directory = format!("dir:{}", file.display());
    for (source, code, message) in [
        ("dir:/no/such/path", 1, "/no/such/path: No such file or directory"),
        (not_a_directory.as_str(), 1, "Not a directory"),
        ("kube:/no/such/kubeconfig", 1, "give a kubeconfig: --source kube:PATH"),
        ("cube", 2, "use kube, kube:PATH (a kubeconfig), or dir:PATH"),
        ("dir:", 2, "or dir:PATH"),
    ] {
        let output = node.subcommand(&["run", "--node", "n1", "--source", source]);
        let text = stderr_of(&output);
        assert_eq!(output.status.code(), Some(code), "{source}: {text}");
        assert!(text.contains(message), "{source}: {text}");
        assert!(text.matches("No such file").count() <= 1, "each cause must be printed once: {text}");
        assert!(!node.pin_path.exists(), "{source}: pins must not be created when the agent cannot start");
    }
}

#[test]
fn a_pin_path_outside_bpffs_is_refused_with_the_mount_command() {
    let mut node = Node::new();
    node.pin_path = node.directory.path().join("pins");
    let source = format!("dir:{}", node.directory.path().display());
    let output = node.subcommand(&["run", "--node", "n1", "--source", &source]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("mount -t bpf"), "{}", stderr_of(&output));
}

#[test]
fn status_without_pins_reports_that_no_agent_has_run() {
    let node = Node::new();
    let output = node.subcommand(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr_of(&output).contains("no agent has run here"), "{}", stderr_of(&output));
}

#[test]
fn an_unknown_node_and_invalid_manifests_are_reported() {
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
    // All pods of the manifests are on node n1.
    let source = format!("dir:{}", node.directory.path().display());
    let other = node.start_another(&["run", "--node", "n9", "--source", &source]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let text = node::kill(other);
    assert!(text.contains("no pod is on this node") && text.contains("n1"), "{text}");
}

#[test]
fn missing_capabilities_are_named() {
    let node = Node::new();
    for command in ["status", "uninstall"] {
        let output = std::process::Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
            .args([env!("CARGO_BIN_EXE_netpol-agent"), command, "--pin-path"])
            .arg(&node.pin_path)
            .output()
            .expect("cannot run setpriv: install util-linux");
        let text = stderr_of(&output);
        assert_eq!(output.status.code(), Some(5), "{text}");
        assert!(text.contains("CAP_NET_ADMIN") && text.contains("as root"), "{text}");
    }
}

/// A name, as text in a double-quoted YAML string. Its control characters clear a terminal, start a line with `ready`,
/// and reorder text.
const HOSTILE: &str = "x\\e[2J\\r\\nready\\u202e\\u200b";

#[test]
fn hostile_manifests_are_reported_and_valid_objects_are_enforced() {
    let mut node = Node::with_pods(&[1, 2]);
    // The manifest of pod 3 has the hostile names.
    node.add_pod(3);
    let directory = node.directory.path().to_owned();
    let path = |name: &str| directory.join(name);
    nix::unistd::mkfifo(&path("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("cannot create the FIFO");
    std::os::unix::fs::symlink("/dev/zero", path("zero.yaml")).expect("cannot create the link");
    let sparse = std::fs::File::create(path("sparse.yaml")).and_then(|file| file.set_len(1 << 30));
    sparse.expect("cannot create the sparse file");
    node.write("bad.yaml", &"---\nkind: [\n".repeat(20_000));
    node.write(
        "a\u{1b}[2J\u{202e}\n.yaml",
        &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: \"{HOSTILE}\", namespace: \"{HOSTILE}\"}}, spec: {{nodeName: n1}}, \
             status: {{phase: Running, podIPs: [{{ip: 10.9.0.3}}, {{ip: \"{HOSTILE}\"}}]}}}}\n---\n\
             {{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: \"{HOSTILE}\", namespace: \"{HOSTILE}\"}}, \
             spec: {{podSelector: {{}}, policyTypes: [Ingress, \"{HOSTILE}\"]}}}}\n"
        ),
    );
    node.policy("deny", "{podSelector: {matchLabels: {n: p2}}, policyTypes: [Ingress]}");
    node.start(&["--metrics", "127.0.0.1:9467"]);
    for (file, message) in [
        ("fifo.yaml", "this file is a FIFO"),
        ("zero.yaml", "this file is a character device"),
        ("sparse.yaml", "this file is larger than 128 MiB"),
        ("bad.yaml", "19990 more errors like this one in the file"),
    ] {
        let condition = format!("a line of the log contains {file} and {message:?}");
        node.wait(&condition, || node.log().lines().any(|line| line.contains(file) && line.contains(message)));
    }
    node.expect_connection(1, 2, 80, false);
    node.expect_connection(1, 3, 80, false);
    node.wait("a deny event has the address of pod 3", || node.events().contains("10.9.0.3"));
    let status =
        node.subcommand(&["status", "--api-socket", path(".api.sock").to_str().expect("the path is not UTF-8")]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let (log, page) = (node.log(), node.page(9467, "/metrics"));
    // The log, the page and the status must contain the hostile names, but without their control characters.
    let page = page.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).expect("the response has no body");
    assert!(page.contains("2J") && status.contains("2J") && log.contains("2J"), "{page}\n{status}\n{log}");
    for text in [log, page, status, node.events()] {
        let is_safe = |character: char| character == '\n' || !netpol_policy::text::is_unsafe(character);
        assert!(text.chars().all(is_safe), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("ready")), "{text}");
    }
    // The 20,000 errors in bad.yaml must not fill the log.
    assert!(node.log().lines().count() < 100, "{}", node.log());
}
