//! Unusual manifest files, read by netpol and by kubectl.
//!
//! `kubectl label --local` reads files as `kubectl apply` does and prints the objects as JSON, without a cluster.
//! netpol reads every object that kubectl reads, with the same content. If kubectl rejects or ignores a part of a file,
//! netpol reports it.

use anyhow::{Context as _, Result, ensure};
use netpol_policy::manifest::{self, Parsed};
use netpol_policy::model::{Object, ObjectKey};
use netpol_tests::kubectl;
use serde_json::Value;

/// Whether kubectl reads a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// kubectl reads the whole file.
    All,
    /// kubectl rejects or ignores a part of the file.
    Part,
}
use Reads::{All, Part};

/// Returns a network policy as YAML, indented by this many spaces.
fn yaml(name: &str, indent: usize) -> String {
    let lines = [
        "apiVersion: networking.k8s.io/v1".to_owned(),
        "kind: NetworkPolicy".to_owned(),
        format!("metadata: {{name: {name}, namespace: shop}}"),
        "spec: {podSelector: {}}".to_owned(),
    ];
    lines.map(|line| format!("{}{line}\n", " ".repeat(indent))).concat()
}

fn json(name: &str) -> String {
    let metadata = format!(r#"{{"name":"{name}","namespace":"shop"}}"#);
    format!(
        r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{metadata},"spec":{{"podSelector":{{}}}}}}"#
    )
}

/// Returns a policy with one port. `port` is the text of the number.
fn port(port: &str) -> String {
    yaml("a", 0)
        .replace("{podSelector: {}}", &format!("{{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}"))
}

#[test]
fn unusual_files_are_read_as_kubectl_reads_them() -> Result<()> {
    let (a, b, byte_order_mark) = (yaml("a", 0), yaml("b", 0), "\u{feff}");
    let files = [
        ("separator", format!("{a}---\n{b}"), All),
        ("separator with a comment", format!("{a}---# comment\n{b}"), All),
        ("separator with a space and a comment", format!("{a}--- # comment\n{b}"), All),
        ("separators with blanks", format!("--- \n{a}---\t\n{b}"), All),
        ("carriage returns", format!("{a}---\n{b}").replace('\n', "\r\n"), All),
        ("byte order mark", format!("{byte_order_mark}{a}---\n{b}"), All),
        ("byte order mark after a separator", format!("{a}---\n{byte_order_mark}{b}"), All),
        ("empty documents", format!("---\n---\n{a}---\n\n# comment\n---\n{b}---\n"), All),
        ("indented document", format!("{a}---\n{}", yaml("b", 2)), All),
        ("JSON lines", format!("{}\n{}\n", json("a"), json("b")), All),
        ("JSON without a separator", format!("{}{}", json("a"), json("b")), All),
        ("JSON after blank lines", format!(" \n\n  {}\n{}", json("a"), json("b")), All),
        ("JSON and YAML", format!("{}\n{b}", json("a")), Part),
        ("end marker", format!("{a}...\n{b}"), Part),
        ("four dashes", format!("{a}----\n{b}"), Part),
        ("separator with text", format!("{a}---text\n{b}"), Part),
        ("content on the separator's line", format!("--- {}\n---\n{b}", json("a")), Part),
        ("list of objects", format!("[{},{}]", json("a"), json("b")), Part),
        ("leading zero", port("08080"), All),
        ("octal", port("0120"), All),
        ("digit separator", port("8_080"), All),
        ("float", port("8080.0"), All),
        ("exponent", port("8e3"), All),
        ("hexadecimal", port("0x50"), All),
        ("name that is a boolean", yaml("y", 0), Part),
        ("name that is a number", yaml("123", 0), Part),
    ];
    let mut failures = Vec::new();
    for (name, text, reads) in &files {
        if let Err(error) = compare(text, *reads) {
            failures.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Checks that netpol reads every object that kubectl reads, and that netpol reports errors exactly if kubectl reads
/// only a part of the file.
fn compare(text: &str, reads: Reads) -> Result<()> {
    let by_netpol = manifest::parse(text, "odd.yaml");
    let (by_kubectl, is_whole) = by_kubectl(text)?;
    ensure!(is_whole == (reads == All), "kubectl reads {} of the file", if is_whole { "all" } else { "a part" });
    for (key, object) in objects(&by_kubectl) {
        let found = objects(&by_netpol).into_iter().find(|(found, _)| *found == key);
        ensure!(
            found.as_ref().is_some_and(|(_, found)| *found == object),
            "{key}: kubectl reads {object:?}, netpol {found:?}"
        );
    }
    let reported = !by_netpol.errors.is_empty();
    ensure!(reported == (reads == Part), "netpol reports these errors: {:?}", by_netpol.errors);
    Ok(())
}

fn objects(parsed: &Parsed) -> Vec<(ObjectKey, &Object)> {
    parsed.objects.iter().map(|located| (located.object.key(), &located.object)).collect()
}

/// Returns the objects that kubectl reads, and whether these are all objects of the file. kubectl silently ignores
/// everything after an end marker.
fn by_kubectl(text: &str) -> Result<(Parsed, bool)> {
    let file =
        tempfile::Builder::new().prefix("netpol-").suffix(".yaml").tempfile().context("creating a temporary file")?;
    std::fs::write(file.path(), text)?;
    let path = file.path().display().to_string();
    let output = kubectl::run(["label", "--local", "-f", &path, "read-by=kubectl", "-o", "json"])?;
    let mut parsed = Parsed::default();
    for value in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
        let mut value = value.context("reading kubectl's JSON")?;
        // Removes the label that `kubectl label` has added.
        if let Some(metadata) = value.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            metadata.remove("labels");
        }
        parsed.objects.extend(manifest::read(value, "kubectl").objects);
    }
    let rejected = !output.status.success();
    let ignored = text.contains("\n...\n");
    Ok((parsed, !rejected && !ignored))
}
