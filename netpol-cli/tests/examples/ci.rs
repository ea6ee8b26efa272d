//! The GitHub Action, the hooks of pre-commit, the manifest of krew, and docs/ci.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::common::{Manifests, RunOutput};
use crate::root;

/// Two pods, and a policy with a peer that matches no pod: no pod has the label `app=x`. For this, `lint` prints a
/// warning.
const MANIFEST: &str = "\
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop, labels: {app: b}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: shop}
spec: {podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}
";
/// Expectations that the manifest fulfills.
const EXPECTATIONS: &str = "expectations:\n- {deny: shop/b, to: shop/a}\n";
/// The default of the action's input `assertions`.
const EXPECTATIONS_FILE: &str = "netpol-expectations.yaml";

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn parse<T: serde::de::DeserializeOwned>(path: &str, text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns a directory with the manifest in `manifests/`, and with the expectations.
fn shop() -> Manifests {
    Manifests::of(&[("manifests/shop.yaml", MANIFEST), (EXPECTATIONS_FILE, EXPECTATIONS)])
}

fn run(command: &mut Command) -> RunOutput {
    let output = command.output().expect("the command starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    RunOutput { code: output.status.code().expect("an exit code"), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs a command line in bash, in this directory, with `netpol` and `kubectl-netpol` in `PATH` and without a
/// kubeconfig.
fn shell(line: &str, directory: &Path) -> RunOutput {
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).expect("a directory");
    for name in ["netpol", "kubectl-netpol"] {
        if !bin.join(name).exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_netpol"), bin.join(name)).expect("a link");
        }
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-c", line]).current_dir(directory).env("PATH", path).env("HOME", directory).env_remove("KUBECONFIG");
    run(&mut command)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    name: String,
    description: String,
    inputs: BTreeMap<String, Input>,
    outputs: BTreeMap<String, Output>,
    runs: Runs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    description: String,
    default: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    description: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Runs {
    using: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Step {
    name: String,
    #[serde(rename = "if")]
    condition: Option<String>,
    /// A composite action must set the shell of each `run`.
    shell: String,
    working_directory: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    run: String,
}

fn action() -> Action {
    parse("action.yml", &read("action.yml"))
}

/// Returns each name that follows this prefix in the text.
fn names<'t>(text: &'t str, prefix: &str) -> BTreeSet<&'t str> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || "_-".contains(character);
    text.split(prefix)
        .skip(1)
        .map(|rest| rest.split(|character| !is_name(character)).next().unwrap_or_default())
        .collect()
}

#[test]
fn the_action_has_descriptions_and_passes_each_input_to_its_script() {
    let action = action();
    let texts = [&action.name, &action.description];
    let described = action.inputs.values().map(|input| &input.description);
    let described = described.chain(action.outputs.values().map(|output| &output.description)).chain(texts);
    assert!(described.into_iter().all(|text| !text.is_empty()));
    let inputs: BTreeSet<&str> = action.inputs.keys().map(String::as_str).collect();
    assert_eq!((action.runs.using.as_str(), names(&read("action.yml"), "inputs.")), ("composite", inputs.clone()));
    assert!(action.runs.steps.iter().all(|step| step.shell == "bash" && !step.name.is_empty()));
    let [build, script] = &action.runs.steps[..] else { panic!("not two steps") };
    assert_eq!(build.condition.as_deref(), Some("inputs.netpol == ''"));
    assert_eq!(build.working_directory.as_deref(), Some("${{ github.action_path }}"));
    assert!(build.run.starts_with("cargo build ") && build.run.contains(" --package netpol-cli "), "{}", build.run);
    assert!(root().join("netpol-cli/Cargo.toml").exists());
    // `${{ … }}` in a script would insert the text of an input, and the shell would run this text as code.
    assert!(action.runs.steps.iter().all(|step| !step.run.contains("${{")));
    assert_eq!(script.run, "bash \"$RUN\"");
    assert!(script.env["RUN"].ends_with("/packaging/github-action/run.sh"));
    let passed: BTreeSet<&str> = script.env.keys().filter_map(|name| name.strip_prefix("INPUT_")).collect();
    assert_eq!(names(&read("packaging/github-action/run.sh"), "$INPUT_"), passed);
    assert!(action.outputs.values().all(|output| output.value == "${{ inputs.sarif }}"));
}

/// Runs the script of the action with its defaults and these inputs.
fn run_action(directory: &Path, inputs: &[(&str, &str)]) -> RunOutput {
    let mut command = Command::new("bash");
    command.arg(root().join("packaging/github-action/run.sh")).current_dir(directory);
    command.env("NETPOL", env!("CARGO_BIN_EXE_netpol")).env("GITHUB_STEP_SUMMARY", directory.join("summary.md"));
    let defaults = action().inputs.into_iter().map(|(name, input)| (name, input.default));
    let explicit = inputs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    for (name, value) in defaults.chain(explicit) {
        command.env(format!("INPUT_{}", name.to_uppercase().replace('-', "_")), value);
    }
    run(&mut command)
}

#[test]
fn the_action_lints_and_checks_expectations() {
    let manifests = shop();
    let directory = manifests.path();
    for (inputs, code, expected) in [
        (&[][..], 0, "::warning file=./manifests/shop.yaml,line="),
        (&[("fail-on", "warning"), ("paths", "manifests\n./manifests/shop.yaml")], 1, "::warning file="),
        (&[("fail-on", "info"), ("args", "--rule NP010")], 0, "3 objects, 0 errors, 0 warnings"),
        (&[("paths", "missing")], 3, "0 objects"),
        (&[("paths", "")], 2, ""),
        (&[("command", "assert"), ("paths", "manifests")], 0, "1 passed, 0 failed"),
        (&[("command", "assert"), ("assertions", "missing.yaml")], 3, ""),
        (&[("command", "format")], 2, ""),
        (&[("command", "diff"), ("paths", "a b")], 2, ""),
    ] {
        let run = run_action(directory, inputs);
        assert_eq!(run.code, code, "{inputs:?}: {} {}", run.out, run.err);
        assert!(run.out.contains(expected), "{inputs:?}: {} {}", run.out, run.err);
    }
    let run = run_action(directory, &[("sarif", "out.sarif"), ("paths", "manifests")]);
    assert_eq!(run.code, 0, "{}", run.err);
    let sarif: Value =
        serde_json::from_str(&fs::read_to_string(directory.join("out.sarif")).expect("a file")).expect("JSON");
    assert_eq!(
        sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"],
        "manifests/shop.yaml"
    );
}

#[test]
fn the_action_compares_with_the_base_commit() {
    let manifests = shop();
    let directory = manifests.path();
    let commit = "git init -q . && git add manifests && git -c user.name=x -c user.email=x@example.org commit -qm x";
    assert_eq!(shell(commit, directory).code, 0);
    // After this change, the peer of the policy matches pod `b`.
    let text = MANIFEST.replace("app: x", "app: b");
    fs::write(directory.join("manifests/shop.yaml"), text).expect("a manifest");
    for (args, code) in [("", 0), ("--exit-code", 1)] {
        let inputs = [("command", "diff"), ("paths", "manifests/"), ("base", "HEAD"), ("args", args)];
        let run = run_action(directory, &inputs);
        assert_eq!(run.code, code, "{} {}", run.out, run.err);
        assert!(run.out.contains("| now allowed | shop/b | shop/a | all |"), "{}", run.out);
        assert!(fs::read_to_string(directory.join("summary.md")).expect("a summary").ends_with(&run.out));
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hook {
    id: String,
    name: String,
    description: String,
    entry: String,
    args: Vec<String>,
    language: String,
    files: String,
    pass_filenames: bool,
}

#[test]
fn the_hooks_of_pre_commit_run() {
    let hooks: Vec<Hook> = parse(".pre-commit-hooks.yaml", &read(".pre-commit-hooks.yaml"));
    assert_eq!(hooks.iter().map(|hook| &*hook.id).collect::<Vec<_>>(), ["netpol-lint", "netpol-assert"]);
    for Hook { id, name, description, entry, args, language, files, pass_filenames } in hooks {
        assert_eq!((entry.as_str(), language.as_str(), pass_filenames), (&*id.replace('-', " "), "system", false));
        assert!(!description.is_empty() && name == entry && files == r"\.(ya?ml|json)$", "{id}");
        let manifests = shop();
        let run = shell(&format!("{entry} {}", args.join(" ")), manifests.path());
        assert_eq!(run.code, 0, "{id}: {} {}", run.out, run.err);
        // The hook really reads the manifests of the directory: it fails if one of them is invalid.
        fs::write(manifests.path().join("manifests/shop.yaml"), "kind: [").expect("a manifest");
        assert_eq!(shell(&format!("{entry} {}", args.join(" ")), manifests.path()).code, 3, "{id}");
    }
}

#[test]
fn the_page_about_ci_has_commands_and_inputs_that_exist() {
    let page = read("docs/ci.md");
    let manifests = shop();
    let lines = page.lines().filter(|line| line.starts_with("    "));
    let commands = lines.filter_map(|line| {
        let line = line.trim_start().trim_start_matches("- ");
        line.starts_with("netpol ")
            .then(|| line.to_owned())
            .or(line.strip_prefix("kubectl netpol ").map(|rest| format!("kubectl-netpol {rest}")))
    });
    let commands: Vec<String> = commands.collect();
    assert!(commands.len() >= 4, "{commands:?}");
    for command in commands {
        let run = shell(&command, manifests.path());
        // The exit code 2 would mean wrong usage. `diff` exits with 3, because the directory of this test is in no Git
        // repository. The plugin of kubectl exits with 3, because no cluster exists. `--fail-on warning` exits with 1,
        // because `lint` prints a warning for the manifest.
        let expected = if command.contains("diff") || command.contains("kubectl") {
            3
        } else {
            i32::from(command.contains("warning"))
        };
        assert_eq!(run.code, expected, "{command}: {}", run.err);
    }
    let hooks =
        page.lines().filter_map(|line| line.trim().strip_prefix("args: [")).filter_map(|line| line.strip_suffix(']'));
    // The arguments for the hooks of pre-commit. Those for `lint` have `--fail-on warning`.
    let hooks: Vec<_> = hooks.zip(["lint", "assert"]).collect();
    assert_eq!(hooks.len(), 2);
    for (args, command) in hooks {
        let run = shell(&format!("netpol {command} {}", args.replace(',', "")), manifests.path());
        assert_eq!(run.code, i32::from(command == "lint"), "{args}: {} {}", run.out, run.err);
    }
    let inputs = action().inputs;
    // The line after each use of the action sets its inputs: `with: {…}`.
    let with_lines: Vec<&str> =
        page.split("uses: OWNER/netpol@REVISION\n").skip(1).filter_map(|text| text.lines().next()).collect();
    assert_eq!(with_lines.len(), 3);
    for line in with_lines {
        let text = line.trim().strip_prefix("with: ").expect("inputs");
        let documented: BTreeMap<String, String> = parse("docs/ci.md", text);
        assert!(documented.keys().all(|name| inputs.contains_key(name)), "{text}");
    }
    for name in inputs.keys() {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}

/// The fields that krew reads: `Plugin` in <https://github.com/kubernetes-sigs/krew/blob/master/pkg/index/types.go>.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Plugin {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: PluginSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PluginSpec {
    version: String,
    homepage: String,
    short_description: String,
    description: String,
    caveats: String,
    platforms: Vec<Platform>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Platform {
    selector: PlatformSelector,
    uri: String,
    sha256: String,
    files: Vec<PluginFile>,
    bin: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PlatformSelector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginFile {
    from: String,
    to: String,
}

#[test]
fn the_manifest_of_krew_has_the_fields_that_krew_requires() {
    let text = read("packaging/krew/netpol.yaml");
    let values = [
        ("@VERSION@", format!("v{}", env!("CARGO_PKG_VERSION"))),
        ("@HOMEPAGE@", "https://example.org".to_owned()),
        ("@URI@", "https://example.org/kubectl-netpol-linux-amd64.tar.gz".to_owned()),
        ("@SHA256@", "0a".repeat(32)),
    ];
    let text = values.iter().fold(text, |text, (placeholder, value)| text.replace(placeholder, value));
    let Plugin { api_version, kind, metadata, spec } = parse("netpol.yaml", &text);
    assert_eq!((&*api_version, &*kind), ("krew.googlecontainertools.github.com/v1alpha2", "Plugin"));
    // kubectl runs `kubectl netpol` as the program kubectl-netpol.
    assert_eq!((&*metadata.name, &*spec.version), ("netpol", &*values[0].1));
    // `kubectl krew search` prints the short description in a column of a table.
    assert!((1..=50).contains(&spec.short_description.len()) && !spec.short_description.ends_with('.'));
    assert!(spec.homepage.starts_with("https://") && !spec.description.is_empty() && !spec.caveats.is_empty());
    let [Platform { selector, uri, sha256, files, bin }] = &spec.platforms[..] else { panic!("not one platform") };
    let labels: Vec<(&str, &str)> = selector.match_labels.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(labels, [("arch", "amd64"), ("os", "linux")]);
    assert_eq!((uri, sha256, bin.as_str()), (&values[2].1, &values[3].1, "kubectl-netpol"));
    assert!(files.iter().all(|file| file.to == "."));
    assert_eq!(files.iter().map(|file| &*file.from).collect::<Vec<_>>(), ["kubectl-netpol", "LICENSE"]);
}

#[test]
fn environment_variables_set_options() {
    let page = read("docs/ci.md");
    let manifests = shop();
    for (name, line, expected) in [
        ("NETPOL_FAIL_ON", "NETPOL_FAIL_ON=warning netpol lint -f manifests", 1),
        ("NETPOL_FAIL_ON", "NETPOL_FAIL_ON=warning netpol lint -f manifests --fail-on error", 0),
        ("NETPOL_FAIL_ON", "NETPOL_FAIL_ON=all netpol lint -f manifests", 2),
        ("NETPOL_POD_CIDR", "NETPOL_POD_CIDR=10.1.0.0/16,fd00::/8 netpol matrix -f manifests", 0),
        ("NETPOL_POD_CIDR", "NETPOL_POD_CIDR=10.1 netpol matrix -f manifests", 2),
        ("NETPOL_AGENT_NAMESPACE", "netpol status --help | grep -q NETPOL_AGENT_NAMESPACE=", 0),
    ] {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
        let run = shell(line, manifests.path());
        assert_eq!(run.code, expected, "{line}: {} {}", run.out, run.err);
    }
}

#[test]
fn help_of_the_kubectl_plugin_shows_kubectl_netpol_as_the_command() {
    let manifests = shop();
    let run = shell("kubectl-netpol lint --help", manifests.path());
    assert!(run.code == 0 && run.out.contains("Usage: kubectl netpol lint [OPTIONS]"), "{}", run.out);
}
