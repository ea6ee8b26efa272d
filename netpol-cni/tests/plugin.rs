//! Calls the executable `netpol-cni` as a container runtime does, with a fake agent.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The default `CNI_ARGS`: the pod `shop/web`.
const CNI_ARGS: &str =
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID=u1";
/// The agent's response if it enforces the pod's policies.
const ENFORCED: &str = "HTTP/1.1 200 OK\r\n\r\n{\"outcome\":\"enforced\",\"tookMs\":3}";
/// The agent's response if it does not enforce the pod's policies yet.
const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\":\"no pod shop/web\"}";

/// The agent's response if the pod may start although its policies are not enforced.
const EXEMPT: &str = "HTTP/1.1 200 OK\r\n\r\n{\"outcome\":\"exempt\",\"tookMs\":2000,\"reason\":\"no interface\"}";

/// The result of the previous plugin. It has details that netpol's plugin must not change: number formats, unknown
/// fields, the order of keys.
const PREV_RESULT: &str = r#"{"cniVersion":"1.0.0", "ips":[{"interface":1,"address":"10.0.0.5/24","gateway":"10.0.0.1"}],
 "interfaces":[{"name":"veth1","mtu":1.5e3},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/x"}], "x":{"b":1,"a":[]}, "dns":{}}"#;

/// The result of a call of the plugin.
#[derive(Debug)]
struct Output {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    took: Duration,
}

impl Output {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that the plugin printed the result of the previous plugin, so the container runtime starts the pod.
    #[track_caller]
    fn assert_passes(&self) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), PREV_RESULT), "{self:?}");
    }

    /// Checks that the plugin failed, with this CNI error code and a message with these words.
    #[track_caller]
    fn assert_fails_with(&self, code: u32, words: &str) {
        assert_eq!((self.code, &self.json()["code"]), (Some(1), &json!(code)), "{self:?}");
        assert!(self.json()["msg"].as_str().unwrap().contains(words), "{self:?}");
    }
}

/// Calls the plugin. `variables` are added to the environment variables of a usual ADD command, or replace them.
fn call(variables: &[(&str, &str)], input: &str) -> Output {
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-cni"));
    command.env_clear().envs([
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "s1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", CNI_ARGS),
    ]);
    command.envs(variables.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The plugin may have ended without reading its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        took: start.elapsed(),
    }
}

/// Returns the plugin's configuration. `settings` is empty, or JSON members with a comma after each.
fn input(socket: &Path, settings: &str) -> String {
    let socket = socket.display();
    format!(
        r#"{{"cniVersion":"1.0.0","name":"n","type":"netpol-cni","socket":"{socket}",{settings}"prevResult":{PREV_RESULT}}}"#
    )
}

/// A fake agent.
struct Agent {
    directory: TempDir,
    /// The first line and the body of each received request.
    requests: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Agent {
    /// Returns an agent that is not running yet.
    fn absent() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), requests: Arc::default() }
    }

    /// Starts an agent that sends these responses, one to each request. The last response is repeated.
    fn start(responses: &'static [&'static str]) -> Self {
        let agent = Self::absent();
        agent.listen(responses);
        agent
    }

    fn listen(&self, responses: &'static [&'static str]) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let requests = Arc::clone(&self.requests);
        thread::spawn(move || {
            for number in 0.. {
                let (mut stream, _) = listener.accept().unwrap();
                requests.lock().unwrap().push(read_request(&mut stream));
                // The plugin may have closed the connection.
                let _ = stream.write_all(responses[number.min(responses.len() - 1)].as_bytes());
            }
        });
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// Calls the plugin with the command ADD and this agent's socket.
    fn add(&self, settings: &str) -> Output {
        call(&[], &input(&self.socket(), settings))
    }

    fn requests(&self) -> Vec<(String, Value)> {
        self.requests.lock().unwrap().clone()
    }
}

/// Reads a request. Returns its first line and its body.
fn read_request(stream: &mut UnixStream) -> (String, Value) {
    let mut request = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "the request is incomplete: {request:?}");
        request.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if let Ok(body) = serde_json::from_str(body) {
            return (head.lines().next().unwrap().to_owned(), body);
        }
    }
}

#[test]
fn an_enforced_pod_starts_and_prev_result_is_printed_unchanged() {
    let agent = Agent::start(&[ENFORCED]);
    agent.add("").assert_passes();
    let [(line, body)] = &agent.requests()[..] else { panic!("{:?}", agent.requests()) };
    assert_eq!(line, "POST /v1/pods/start HTTP/1.1");
    let timeout = body["timeoutMs"].as_u64().unwrap();
    assert!((9000..=10_000).contains(&timeout), "{body}");
    assert_eq!(
        body,
        &json!({"containerId": "s1", "namespace": "shop", "name": "web", "uid": "u1", "addresses": ["10.0.0.5"], "timeoutMs": timeout})
    );
}

#[test]
fn all_supported_versions_pass_and_others_are_refused() {
    let agent = Agent::start(&[ENFORCED]);
    let configuration = input(&agent.socket(), "");
    let with_version = |version: &str| configuration.replacen("\"cniVersion\":\"1.0.0\"", version, 1);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        call(&[], &with_version(&format!("\"cniVersion\":\"{version}\""))).assert_passes();
    }
    // In the last case, `cniVersion` is missing.
    for version in ["\"cniVersion\":\"0.2.0\"", "\"cniVersion\":\"1.2.0\"", "\"cniVersion\":\"\"", "\"of\":\"none\""] {
        call(&[], &with_version(version)).assert_fails_with(1, "supported: 0.3.0");
    }
}

#[test]
fn the_version_command_lists_versions() {
    for (input, version) in [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.1.0")] {
        let output = call(&[("CNI_COMMAND", "VERSION")], input);
        let versions = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(output.json(), json!({"cniVersion": version, "supportedVersions": versions}));
    }
}

#[test]
fn invalid_calls_have_the_codes_of_the_specification() {
    let agent = Agent::start(&[ENFORCED]);
    let valid = input(&agent.socket(), "");
    call(&[("CNI_COMMAND", "")], "").assert_fails_with(4, "CNI_COMMAND");
    call(&[("CNI_COMMAND", "UPDATE")], &valid).assert_fails_with(4, "UPDATE");
    call(&[("CNI_CONTAINERID", ""), ("CNI_NETNS", "")], &valid).assert_fails_with(4, "CNI_CONTAINERID, CNI_NETNS");
    call(&[], "{").assert_fails_with(6, "configuration");
    call(&[], r#"{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"x"}]}}"#).assert_fails_with(6, "prevResult");
    call(&[], r#"{"cniVersion":"1.0.0"}"#).assert_fails_with(7, "prevResult");
    call(&[], r#"{"cniVersion":"1.0.0","prevResult":null}"#).assert_fails_with(7, "prevResult");
    agent.add(r#""whenAgentAway":"maybe","#).assert_fails_with(7, "maybe");
    agent.add(r#""timeoutSeconds":0,"#).assert_fails_with(7, "timeoutSeconds");
    assert_eq!(agent.requests(), []);
    assert_eq!(call(&[], r#"{"cniVersion":"0.4.0"}"#).json()["cniVersion"], "0.4.0");
}

#[test]
fn by_default_a_pod_waits_until_the_agent_is_back() {
    let agent = Agent::absent();
    thread::scope(|scope| {
        let output = scope.spawn(|| agent.add(""));
        thread::sleep(Duration::from_millis(400));
        agent.listen(&[ENFORCED]);
        let output = output.join().unwrap();
        output.assert_passes();
        assert!(output.took >= Duration::from_millis(400), "{output:?}");
    });
}

#[test]
fn by_default_the_plugin_fails_after_the_timeout_so_that_the_runtime_retries() {
    let output = Agent::absent().add(r#""timeoutSeconds":1,"#);
    output.assert_fails_with(11, "the policies of pod shop/web are not enforced: no agent responds");
    assert!(output.took >= Duration::from_secs(1) && output.took < Duration::from_secs(3), "{output:?}");
}

#[test]
fn with_when_agent_away_deny_the_plugin_fails_at_once() {
    let output = Agent::absent().add(r#""whenAgentAway":"deny","#);
    output.assert_fails_with(11, "no agent responds");
    assert!(output.took < Duration::from_secs(1), "{output:?}");
}

#[test]
fn with_when_agent_away_allow_a_pod_starts_without_an_agent() {
    let output = Agent::absent().add(r#""whenAgentAway":"allow","#);
    output.assert_passes();
    assert!(output.stderr.contains("pod shop/web starts without enforcement"), "{output:?}");
    assert!(output.took < Duration::from_secs(1), "{output:?}");
}

#[test]
fn with_any_value_of_when_agent_away_a_refused_request_is_repeated() {
    for value in ["wait", "deny", "allow"] {
        let agent = Agent::start(&[REFUSED, REFUSED, ENFORCED]);
        agent.add(&format!(r#""whenAgentAway":"{value}","#)).assert_passes();
        assert_eq!(agent.requests().len(), 3);
        let agent = Agent::start(&[REFUSED]);
        let output = agent.add(&format!(r#""whenAgentAway":"{value}","timeoutSeconds":1,"#));
        output.assert_fails_with(11, "the policies of pod shop/web are not enforced: no pod shop/web");
        assert!(output.took >= Duration::from_secs(1), "{output:?}");
    }
}

#[test]
fn a_request_is_repeated_if_the_agent_crashes() {
    // At the first request, the agent closes the connection without a response.
    let agent = Agent::start(&["", ENFORCED]);
    agent.add("").assert_passes();
    assert_eq!(agent.requests().len(), 2);
}

#[test]
fn an_agent_that_does_not_respond_counts_as_unavailable() {
    let agent = Agent::absent();
    // The plugin can connect to this socket, but receives no response.
    let _listener = UnixListener::bind(agent.socket()).unwrap();
    let output = agent.add(r#""timeoutSeconds":1,"#);
    output.assert_fails_with(11, "no response within");
    assert!(output.took < Duration::from_secs(4), "{output:?}");
    agent.add(r#""timeoutSeconds":1,"whenAgentAway":"allow","#).assert_passes();
}

#[test]
fn pods_of_kube_system_start_even_without_enforcement() {
    let arguments = ("CNI_ARGS", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns");
    let refusing = Agent::start(&[REFUSED]);
    for agent in [Agent::absent(), refusing] {
        for value in ["wait", "deny"] {
            let output = call(&[arguments], &input(&agent.socket(), &format!(r#""whenAgentAway":"{value}","#)));
            output.assert_passes();
            assert!(output.stderr.contains("pod kube-system/dns starts without enforcement"), "{output:?}");
            assert!(output.took < Duration::from_secs(1), "{output:?}");
        }
    }
    // An agent that accepts connections, but does not respond.
    let silent = Agent::absent();
    let _listener = UnixListener::bind(silent.socket()).unwrap();
    let output = call(&[arguments], &input(&silent.socket(), ""));
    output.assert_passes();
    assert!(output.took < Duration::from_secs(5), "{output:?}");

    let agent = Agent::start(&[EXEMPT]);
    let output = call(&[arguments], &input(&agent.socket(), ""));
    output.assert_passes();
    assert!(output.stderr.contains("no interface"), "{output:?}");
    assert!(agent.requests()[0].1["timeoutMs"].as_u64().unwrap() <= 2000, "{:?}", agent.requests());
}

#[test]
fn without_a_pod_or_addresses_the_plugin_prints_prev_result_and_sends_no_request() {
    let agent = Agent::start(&[REFUSED]);
    call(&[("CNI_ARGS", "")], &input(&agent.socket(), "")).assert_passes();
    let output = call(&[], r#"{"cniVersion":"1.0.0","prevResult":{"ips":[]}}"#);
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), r#"{"ips":[]}"#));
    assert_eq!(agent.requests(), []);
}

#[test]
fn del_reports_the_stop_of_a_pod_and_never_fails() {
    let delete = |input: &str, variables: &[(&str, &str)]| {
        let output = call(&[&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")], variables].concat(), input);
        assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""), "{output:?}");
        output
    };
    let agent = Agent::start(&["HTTP/1.1 200 OK\r\n\r\nnull"]);
    assert_eq!(delete(&input(&agent.socket(), ""), &[]).stderr, "");
    let stop = json!({"containerId": "s1", "namespace": "shop", "name": "web"});
    assert_eq!(agent.requests(), [("POST /v1/pods/stop HTTP/1.1".to_owned(), stop)]);

    delete(&input(&Agent::absent().socket(), ""), &[]);
    delete(&input(&Agent::start(&[REFUSED]).socket(), ""), &[]);
    // An invalid setting, and a call without a pod.
    delete(&input(&Agent::absent().socket(), r#""timeoutSeconds":0,"#), &[]);
    delete(r#"{"cniVersion":"1.0.0"}"#, &[("CNI_ARGS", "")]);
    let silent = Agent::absent();
    let _listener = UnixListener::bind(silent.socket()).unwrap();
    let output = delete(&input(&silent.socket(), ""), &[]);
    assert!(output.took < Duration::from_secs(3), "{output:?}");
}

#[test]
fn the_commands_check_gc_and_status_succeed_without_an_agent() {
    let configuration = input(&Agent::absent().socket(), r#""whenAgentAway":"deny","#);
    for command in ["CHECK", "GC", "STATUS"] {
        let output = call(&[("CNI_COMMAND", command), ("CNI_CONTAINERID", ""), ("CNI_ARGS", "")], &configuration);
        assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""), "{command}: {output:?}");
        call(&[("CNI_COMMAND", command)], "{").assert_fails_with(6, "configuration");
    }
}
