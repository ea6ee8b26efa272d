//! The rules of `netpol lint`, their pages in `docs/lint/`, and the output formats.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Manifests, RunOutput, netpol};
use expect_test::expect_file;
use netpol_policy::lint::{RULES, RuleId};
use serde_json::{Value, json};

/// A policy with a misspelled label (finding `NP020`, a warning) and an invalid block (`NP003`, an error). A finding
/// about the namespace (`NP070`, an info) is suppressed by an annotation.
const POLICY: &str = "\
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {netpol.io/lint-ignore: 'NP070: one tier only'}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: web
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: wbe
  - from:
    - ipBlock: {cidr: 10.0.0.300/8}
";

fn docs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/lint")
}

fn json_of(run: &RunOutput) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {} {}", run.out, run.err))
}

/// Returns the YAML below a heading of a rule's page.
fn example<'p>(page: &'p str, heading: &str) -> &'p str {
    let (_, section) = page.split_once(&format!("\n## {heading}\n\n```yaml\n")).expect("the heading and YAML below it");
    section.split_once("```\n").expect("the end of the YAML").0
}

#[test]
fn every_rule_has_a_page_with_a_bad_example_for_its_finding_and_a_good_one_without_findings() {
    let readme = fs::read_to_string(docs().join("README.md")).expect("the list of rules");
    for rule in RULES {
        let (id, name, severity) = (rule.id, rule.name, rule.severity.name());
        let page = fs::read_to_string(docs().join(format!("{id}.md"))).unwrap_or_else(|error| panic!("{id}: {error}"));
        let heading = format!("# {id}: {name}\n\n{} Severity: {severity}.\n", rule.summary);
        assert!(page.starts_with(&heading), "{id}.md must start with: {heading}");
        let row = format!("| [{id}]({id}.md) | {name} | {severity} | {} |\n", rule.summary);
        assert!(readme.contains(&row), "docs/lint/README.md lacks: {row}");
        for (heading, expected) in [("Bad", Some(id)), ("Good", None)] {
            let manifests = Manifests::of(&[("manifest.yaml", example(&page, heading))]);
            let output = json_of(&manifests.run("lint", &["-o", "json"]));
            let found: Vec<&Value> =
                output["findings"].as_array().expect("a list").iter().map(|finding| &finding["rule"]).collect();
            let expected: Vec<Value> = expected.iter().map(|id: &RuleId| json!(id)).collect();
            assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{id}.md: {heading}: {output:#}");
        }
    }
    let pages = fs::read_dir(docs()).expect("docs/lint").count();
    assert_eq!(pages, RULES.len() + 1, "docs/lint has a page for each rule, and the README");
}

/// For some findings, `netpol lint` prints a diff as the fix. If this diff is applied to the bad example of a rule's
/// page, the rule has no finding any more.
#[test]
fn diffs_can_be_applied() {
    let mut applied = 0;
    for rule in RULES {
        let page = fs::read_to_string(docs().join(format!("{}.md", rule.id))).expect("a page");
        let manifests = Manifests::of(&[("manifest.yaml", example(&page, "Bad"))]);
        let lint = || json_of(&manifests.run("lint", &["-o", "json"]))["findings"].take();
        let patch = lint()[0]["fix"]["patch"].take();
        if patch["format"] == "unifiedDiff" {
            let text = patch["text"].as_str().expect("a text").replace("DIR/", "");
            apply(&manifests, &text);
            assert!(!lint().to_string().contains(&rule.id.to_string()), "{}: {text}", rule.id);
            applied += 1;
        }
    }
    assert!(applied > 10, "only {applied} examples have a diff");
}

/// Applies a diff, which must have only one hunk, to the manifest.
fn apply(manifests: &Manifests, diff: &str) {
    let path = manifests.path().join("manifest.yaml");
    let (header, hunk) = diff.split_once(" @@\n").expect("a hunk");
    assert!(header.starts_with("--- manifest.yaml\n+++ manifest.yaml\n@@ -"), "{header}");
    let lines_without =
        |mark: char| hunk.lines().filter(|line| !line.starts_with(mark)).map(|line| &line[1..]).collect();
    let (old, new): (Vec<&str>, Vec<&str>) = (lines_without('+'), lines_without('-'));
    let text = fs::read_to_string(&path).expect("the manifest");
    let (old, new) = (old.join("\n") + "\n", new.join("\n") + "\n");
    assert_eq!(text.matches(&old).count(), 1, "{diff}");
    fs::write(path, text.replace(&old, &new)).expect("the manifest");
}

/// The directories in `examples/` may have findings of severity `info`. The only other finding is `NP022`, for a policy
/// with an intended mistake.
#[test]
fn examples_have_only_the_warnings_that_their_readmes_describe() {
    let examples = docs().join("../../examples");
    let mut found = Vec::new();
    for entry in fs::read_dir(&examples).expect("examples/").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            let run = netpol(&["lint", "-f", entry.to_str().expect("text"), "--fail-on", "warning", "-o", "json"], "");
            let findings = json_of(&run)["findings"].take();
            let serious = findings.as_array().into_iter().flatten().filter(|finding| finding["severity"] != "info");
            let serious: Vec<String> =
                serious.map(|finding| format!("{} {}", finding["rule"], finding["object"])).collect();
            assert_eq!(run.code, i32::from(!serious.is_empty()), "{}", run.err);
            found.extend(serious);
        }
    }
    assert_eq!(found, [r#""NP022" "NetworkPolicy shop/allow-from-qa-wrong-label""#]);
}

#[test]
fn findings_are_printed_in_each_format() {
    let manifests = Manifests::of(&[("policy.yaml", POLICY)]);
    expect_file!["golden/lint_text.txt"].assert_eq(&manifests.run("lint", &[]).out);
    expect_file!["golden/lint_github.txt"].assert_eq(&manifests.run("lint", &["-o", "github"]).out);
    let output = json_of(&manifests.run("lint", &["-o", "json"]));
    assert_eq!(output["summary"], json!({"errors": 1, "warnings": 1, "infos": 0, "suppressed": 1}));
    let finding = &output["findings"][0];
    assert_eq!(
        (&finding["rule"], &finding["line"], &finding["severity"]),
        (&json!("NP020"), &json!(17), &json!("warning"))
    );
    assert_eq!(finding["path"], "spec.ingress[0].from[0]");
    assert_eq!(output["suppressed"][0]["reason"], "one tier only");
}

/// The properties that SARIF 2.1.0 requires, and those that GitHub's code scanning uses.
#[test]
fn sarif_has_the_required_properties() {
    let log = json_of(&Manifests::of(&[("policy.yaml", POLICY)]).run("lint", &["-o", "sarif"]));
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let driver = &run["tool"]["driver"];
    assert_eq!((&driver["name"], &run["invocations"][0]["executionSuccessful"]), (&json!("netpol"), &json!(true)));
    let rules = driver["rules"].as_array().expect("rules");
    assert_eq!(rules.len(), RULES.len());
    let results = run["results"].as_array().expect("results");
    let ids: Vec<&Value> = results.iter().map(|result| &result["ruleId"]).collect();
    assert_eq!(ids, ["NP020", "NP003", "NP070"]);
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().expect("an index")).expect("a small number");
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(["error", "warning", "note"].contains(&result["level"].as_str().expect("a level")), "{result}");
        assert!(!result["message"]["text"].as_str().expect("a text").is_empty());
        let location = &result["locations"][0]["physicalLocation"];
        assert!(location["artifactLocation"]["uri"].as_str().expect("a URI").ends_with("/policy.yaml"));
        assert!(location["region"]["startLine"].as_u64() > Some(0), "{location}");
        assert!(result["partialFingerprints"].is_object(), "{result}");
    }
    assert_eq!(results[2]["suppressions"], json!([{"kind": "inSource", "justification": "one tier only"}]));
}

#[test]
fn options_select_rules_and_the_severity_that_fails() {
    let manifests = Manifests::of(&[("policy.yaml", POLICY)]);
    // Without the invalid block, the most severe finding is the warning `NP020`.
    let valid = Manifests::of(&[("policy.yaml", &POLICY.replace("300", "30"))]);
    for (manifests, arguments, code) in [
        (&manifests, &[][..], 1),
        (&manifests, &["--fail-on", "never"], 0),
        (&manifests, &["--skip", "NP003,NP020", "--fail-on", "info"], 0),
        (&manifests, &["--rule", "NP020"], 0),
        (&manifests, &["--rule", "peer-matches-no-pod", "--fail-on", "warning"], 1),
        (&valid, &[], 0),
        (&valid, &["--fail-on", "warning"], 1),
        (&valid, &["--fail-on", "error"], 0),
        (&valid, &["--rule", "NP999"], 2),
    ] {
        let run = manifests.run("lint", arguments);
        assert_eq!(run.code, code, "{arguments:?}: {} {}", run.out, run.err);
    }
}
