//! Checks the agent's metrics, which are rows of the tables in netpol-agent/src/metrics.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use super::{docs, sources};

/// The functions that create a row. They are named after the types of metrics.
const TYPES: [&str; 4] = ["gauge", "counter", "histogram", "summary"];
/// eBPF programs. Their names look like names of metrics in the docs.
const PROGRAMS: [&str; 3] = ["netpol_egress", "netpol_ingress", "netpol_recheck"];

/// Type, name and help text of a row.
type Row<'a> = (&'static str, &'a str, &'a str);

/// A metric of the agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metric {
    /// `gauge`, `counter`, `histogram` or `summary`.
    pub(super) kind: &'static str,
    /// The names of its labels. The set can also contain other strings, see [`labels`].
    pub(super) labels: BTreeSet<String>,
}

/// Returns the texts of the files with the tables of metrics.
fn tables() -> Result<Vec<String>> {
    let files = sources::rust()?.into_iter().filter(|(path, _)| path.starts_with("netpol-agent/src/metrics"));
    Ok(files.map(|(_, text)| text).collect())
}

/// Returns the agent's metrics by name.
pub(super) fn all() -> Result<BTreeMap<String, Metric>> {
    let tables = tables()?;
    let metrics = tables.iter().flat_map(|text| {
        rows(text).filter(|row| is_metric(row.1)).map(|(kind, name, _)| {
            let mut labels = labels(text, name);
            labels.extend((kind == "histogram").then(|| "le".to_owned()));
            (name.to_owned(), Metric { kind, labels })
        })
    });
    Ok(metrics.collect())
}

/// Checks names and help texts, and that docs/ describes exactly these metrics.
pub(super) fn check() -> Result<Vec<String>> {
    let tables = tables()?;
    let rows: Vec<Row<'_>> = tables.iter().flat_map(|text| rows(text)).filter(|row| is_metric(row.1)).collect();
    ensure!(rows.len() > 20, "netpol-agent/src/metrics no longer has metrics as `gauge(\"netpol_…\", \"…\"`");
    let docs = docs::docs()?;
    let described = described(&docs);
    let names: BTreeSet<&str> = rows.iter().map(|row| row.1).collect();
    let mut findings: Vec<String> = rows.iter().filter_map(invalid).collect();
    findings.extend(names.difference(&described).map(|name| format!("docs/ does not describe `{name}`")));
    findings.extend(described.difference(&names).map(|name| format!("docs/: there is no metric `{name}`")));
    Ok(findings)
}

/// Returns `("gauge", "netpol_a", "A.")` for `gauge("netpol_a", "A.", …)`.
fn rows(text: &str) -> impl Iterator<Item = Row<'_>> {
    TYPES.into_iter().flat_map(move |kind| {
        // Calls of methods of `Samples`, such as `.histogram` and `.labeled_histogram`, are not rows.
        let calls = text.match_indices(kind).filter(|(at, _)| !text[..*at].ends_with(['.', '_']));
        calls.filter_map(move |(at, _)| {
            let arguments = text[at + kind.len()..].strip_prefix('(')?;
            let mut literals = arguments.split('"').skip(1).step_by(2);
            Some((kind, literals.next()?, literals.next()?))
        })
    })
}

/// Returns the labels of a row: `map` for `samples.each("map", …)`, and `namespace` for a tuple `("namespace", …)`.
/// Searches the row, the functions of the same file that the row uses, and the functions that these functions use.
/// Also returns the first strings of other tuples, although these strings are not labels.
fn labels(text: &str, name: &str) -> BTreeSet<String> {
    let Some((_, rest)) = text.split_once(&format!("\"{name}\"")) else { return BTreeSet::new() };
    let row = &rest[..end_of_call(rest)];
    let direct = functions(text, row);
    let indirect = direct.iter().flat_map(|body| functions(text, body));
    [row].into_iter().chain(direct.iter().copied()).chain(indirect).flat_map(labels_in).collect()
}

/// Returns the bodies of the functions of a file (`text`) that are named in a part of the file.
fn functions<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
    // In `samples.each("map", …)`, `each` is a method of `Samples`, not a function of the file.
    let part = part.replace(".each(\"", "(");
    let names: BTreeSet<&str> = part.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_').collect();
    let definitions = text.match_indices("fn ").filter_map(|(at, _)| {
        let (name, _) = text[at + 3..].split_once(['(', '<'])?;
        let line = text[..at].rsplit('\n').next()?;
        let indent = &line[..line.len() - line.trim_start().len()];
        let body = text[at..].split(&format!("\n{indent}}}\n")).next()?;
        names.contains(name).then_some(body)
    });
    definitions.collect()
}

fn labels_in(code: &str) -> impl Iterator<Item = String> {
    code.match_indices("(\"").filter_map(|(at, _)| {
        let is_tuple = !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        let (label, after) = code[at + 2..].split_once('"')?;
        let is_label = (is_tuple || code[..at].strip_suffix(".each").is_some()) && after.starts_with(',');
        (is_label && !label.is_empty()).then(|| label.to_owned())
    })
}

/// Returns the position of a call's closing parenthesis. The text starts after the call's opening parenthesis. Strings
/// may contain parentheses.
fn end_of_call(text: &str) -> usize {
    let (mut depth, mut in_string) = (1, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '"' => in_string = !in_string,
            '(' if !in_string => depth += 1,
            ')' if !in_string => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Returns the metrics that the docs name: words in backticks, without labels.
fn described(docs: &str) -> BTreeSet<&str> {
    let words = docs.split('`').filter_map(|code| code.split('{').next());
    words.filter(|word| is_metric(word) && !PROGRAMS.contains(word)).collect()
}

fn is_metric(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    word.starts_with("netpol_") && word.bytes().all(plain)
}

/// Returns what is wrong with a row: see <https://prometheus.io/docs/practices/naming/>.
fn invalid((kind, name, help): &Row<'_>) -> Option<String> {
    if (*kind == "counter") != name.ends_with("_total") {
        return Some(format!("metric {name}: only the name of a counter ends with _total, and this is a {kind}"));
    }
    (!help.ends_with('.')).then(|| format!("metric {name}: its help text is not a sentence: {help:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_from_rows_and_docs() {
        let table = "const fn gauge<F>(name) {}\n    gauge(\"netpol_a\", \"A, by kind.\", |page, samples| x(\"kind\")),\n    \
                     counter(\n        \"netpol_b_total\",\n        \"B.\",\n        b,\n    ), |s| s.labeled_histogram(bounds)), gauge(\"netpol_c\", \"C.\", c)";
        let expected =
            [("gauge", "netpol_a", "A, by kind."), ("gauge", "netpol_c", "C."), ("counter", "netpol_b_total", "B.")];
        assert_eq!(rows(table).collect::<Vec<_>>(), expected);
        let docs = "| `netpol_a`, `netpol_b_total{kind=\"x\"}` | see `netpol_egress`, netpol_c and `netpol lint` |";
        assert_eq!(described(docs), ["netpol_a", "netpol_b_total"].into());
    }

    #[test]
    fn labels_are_read_from_rows_and_their_functions() {
        let table = "
            gauge(\"a\", \"A (by map).\", |page, samples| samples.each(\"map\", page.maps())),
            counter(\"b\", \"B.\", by_pod),
            gauge(\"c\", \"C.\", |page, samples| {
                samples.labeled(&[(\"kind\", name), (\"reason\", reason)], count(\"x\"));
            }),
            gauge(\"d\", \"D.\", |page, samples| samples.value(1)),
            counter(\"f\", \"F.\", |page, samples| samples.labeled(&page.pod().each(), 1)),
\nfn by_pod<'a>(page: &Page) {\n    let labels = [(\"namespace\", a), (\"pod\", b)];\n}\n
impl Page {\n    fn each(&self) -> Labels {\n        [(\"direction\", self.direction)]\n    }\n}\nfn other() { (\"no\", 1) }\n";
        for (name, expected) in [
            ("a", &["map"][..]),
            ("b", &["namespace", "pod"]),
            ("c", &["kind", "reason"]),
            ("d", &[]),
            // A metric that the table does not have.
            ("e", &[]),
            ("f", &["direction"]),
        ] {
            assert_eq!(labels(table, name).iter().collect::<Vec<_>>(), expected, "{name}");
        }
    }

    #[test]
    fn names_and_help_texts_are_checked() {
        for (row, is_valid) in [
            (("counter", "netpol_a_total", "A."), true),
            (("counter", "netpol_a", "A."), false),
            (("gauge", "netpol_a_total", "A."), false),
            (("summary", "netpol_a_seconds", "A"), false),
        ] {
            assert_eq!(invalid(&row).is_none(), is_valid, "{row:?}");
        }
    }
}
