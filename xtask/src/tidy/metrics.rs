//! Checks the agent's metrics, which are rows of the tables in netpol-agent/src/metrics.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{docs, sources};

/// The functions that create a row.
const TYPES: [&str; 4] = ["gauge", "counter", "histogram", "summary"];
/// Programs, which the docs name as well.
const PROGRAMS: [&str; 3] = ["netpol_egress", "netpol_ingress", "netpol_recheck"];

/// Type, name and help text of a row.
type Row<'a> = (&'static str, &'a str, &'a str);

/// Checks names and help texts, and that docs/ describes exactly these metrics.
pub(super) fn check() -> Result<Vec<String>> {
    let sources = sources::rust()?;
    let files = sources.iter().filter(|(path, _)| path.starts_with("netpol-agent/src/metrics"));
    let rows: Vec<Row<'_>> = files.flat_map(|(_, text)| rows(text)).filter(|row| is_metric(row.1)).collect();
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
        // Not the methods of `Samples`, such as `.histogram` and `.labeled_histogram`.
        let calls = text.match_indices(kind).filter(|(at, _)| !text[..*at].ends_with(['.', '_']));
        calls.filter_map(move |(at, _)| {
            let arguments = text[at + kind.len()..].strip_prefix('(')?;
            let mut literals = arguments.split('"').skip(1).step_by(2);
            Some((kind, literals.next()?, literals.next()?))
        })
    })
}

/// Returns the metrics that the docs name: words in backticks, labels aside.
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
