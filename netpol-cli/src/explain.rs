//! `netpol explain`.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Result, bail};
use netpol_policy::explain::{Explanation, Verdict};
use netpol_policy::reference::End;
use netpol_policy::text::{self, Safe, wrap};
use serde::{Serialize, Serializer};

use crate::Exit;
use crate::args::{ExplainOptions, Output, PortArgument};
use crate::color::ColorMode;
use crate::ends::{self, EndSet, EndText};
use crate::input::{Input, InputReport};
use crate::table;
use crate::unevaluated;
use crate::verdict::{Evaluator, VerdictError};

/// The number of connections that are evaluated at most.
const MAX_CONNECTIONS: usize = 100_000;
/// The number of connections that are listed for each verdict.
const SHOWN: usize = 10;

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    input: InputReport<'a>,
}

/// The output of `-o json`, if an end stands for several pods or addresses.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutputOfSeveral<'a> {
    from: &'a str,
    to: &'a str,
    port: u16,
    protocol: &'a str,
    verdict: Verdict,
    /// The sources and destinations of all connections, by verdict.
    connections: &'a [Connections],
    /// One of the connections with the worst verdict.
    example: &'a Explanation,
    input: InputReport<'a>,
}

/// Connections with the same verdict.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connections {
    verdict: Verdict,
    /// Pairs of source and destination. Adjacent ranges of destinations are joined.
    #[serde(serialize_with = "as_texts")]
    pairs: Vec<[EndText; 2]>,
    #[serde(skip)]
    first: (End, End),
}

impl Connections {
    fn add(&mut self, source: &EndText, destination: &EndText) {
        if let Some([last_source, last]) = self.pairs.last_mut()
            && last_source == source
            && let Some(joined) = last.joined(destination)
        {
            *last = joined;
            return;
        }
        self.pairs.push([source.clone(), destination.clone()]);
    }
}

fn as_texts<S: Serializer>(pairs: &[[EndText; 2]], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(pairs.iter().map(|pair| pair.each_ref().map(ToString::to_string)))
}

pub(crate) fn run(options: &ExplainOptions, out: &mut impl Write) -> Result<Exit> {
    let input = Input::read(&options.input);
    input.report();
    let mut cluster = input.cluster(&options.input);
    let (from, to) = ends::resolve(&mut cluster, (&options.from, &options.to), &options.namespace)?;
    let evaluate = Evaluator::new(cluster);
    let verdict = match (&from.ends[..], &to.ends[..]) {
        ([(source, _)], [(destination, _)]) => one(options, &input, &evaluate, (source, destination), out)?,
        _ => several(options, &input, &evaluate, (&from, &to), out)?,
    };
    if options.output == Output::Table {
        unevaluated::print(out, &input.parsed.unevaluated, table::text_width())?;
    }
    Ok(match verdict {
        _ if !input.is_complete() => Exit::InvalidInput,
        Verdict::Allow => Exit::Ok,
        Verdict::Unknown => Exit::Unknown,
        Verdict::Some | Verdict::Deny => Exit::Negative,
    })
}

fn one(
    options: &ExplainOptions,
    input: &Input,
    evaluate: &Evaluator,
    (from, to): (&End, &End),
    out: &mut impl Write,
) -> Result<Verdict> {
    let explanation = evaluate.explain(from, to, options.port)?;
    match options.output {
        Output::Json => print_json(out, &JsonOutput { explanation: &explanation, input: input.json() })?,
        Output::Table => write!(out, "{}", render(&explanation))?,
    }
    Ok(explanation.verdict)
}

fn several(
    options: &ExplainOptions,
    input: &Input,
    evaluate: &Evaluator,
    (from, to): (&EndSet, &EndSet),
    out: &mut impl Write,
) -> Result<Verdict> {
    let connections = connections(evaluate, from, to, options.port)?;
    let Some(worst) = connections.last() else {
        bail!("no connection from {} to {} is possible: they have no address family in common", from.title, to.title)
    };
    let verdict = if connections.len() == 1 { worst.verdict } else { mixed(&connections) };
    let example = evaluate.explain(&worst.first.0, &worst.first.1, options.port)?;
    match options.output {
        Output::Json => print_json(
            out,
            &JsonOutputOfSeveral {
                from: &from.title,
                to: &to.title,
                port: options.port.port,
                protocol: options.port.protocol.name(),
                verdict,
                connections: &connections,
                example: &example,
                input: input.json(),
            },
        )?,
        Output::Table => {
            let word = ColorMode::detect().verdict(verdict, &verdict.name().to_uppercase());
            writeln!(out, "{word}: {} -> {}, {}", Safe(&from.title), Safe(&to.title), options.port)?;
            writeln!(out)?;
            for connections in &connections {
                print_connections(out, connections)?;
            }
            writeln!(out, "\nAn example:\n")?;
            write!(out, "{}", render(&example))?;
        }
    }
    Ok(verdict)
}

/// Different verdicts: some connections are denied, or none is denied and some are unknown.
fn mixed(connections: &[Connections]) -> Verdict {
    let is_denied = connections.iter().any(|connections| matches!(connections.verdict, Verdict::Deny | Verdict::Some));
    if is_denied { Verdict::Some } else { Verdict::Unknown }
}

/// Evaluates each connection, except those of a pod to itself, if there are others. Returns them by verdict; the last
/// one is the worst.
fn connections(
    evaluate: &Evaluator,
    from: &EndSet,
    to: &EndSet,
    port: PortArgument,
) -> Result<Vec<Connections>, anyhow::Error> {
    let count = from.ends.len() * to.ends.len();
    if count > MAX_CONNECTIONS {
        bail!(
            "{} to {} are {count} connections, more than {MAX_CONNECTIONS}; use labels or a smaller range",
            from.title,
            to.title
        );
    }
    let mut found: BTreeMap<Verdict, Connections> = BTreeMap::new();
    let pairs = from.ends.iter().flat_map(|source| to.ends.iter().map(move |destination| (source, destination)));
    for ((source, source_text), (destination, text)) in pairs {
        if source == destination && count > 1 {
            continue;
        }
        let verdict = match evaluate.sides(source, destination, port) {
            Ok(_) if matches!(destination, End::Service(_)) => evaluate.explain(source, destination, port)?.verdict,
            Ok(sides) => sides.verdict(),
            Err(VerdictError::Connection(_)) => continue,
            Err(mismatch) => return Err(mismatch.into()),
        };
        let first = || (source.clone(), destination.clone());
        let connections =
            found.entry(verdict).or_insert_with(|| Connections { verdict, pairs: Vec::new(), first: first() });
        connections.add(source_text, text);
    }
    Ok(found.into_values().collect())
}

fn print_connections(out: &mut impl Write, Connections { verdict, pairs, .. }: &Connections) -> Result<()> {
    let mut destinations: Vec<(String, Vec<String>)> = Vec::new();
    for [source, destination] in pairs {
        let source = source.to_string();
        match destinations.last_mut() {
            Some((last, of_last)) if *last == source => of_last.push(destination.to_string()),
            _ => destinations.push((source, vec![destination.to_string()])),
        }
    }
    writeln!(out, "{}:", verdict.name())?;
    for (source, to) in destinations.iter().take(SHOWN) {
        let shown = to.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = if to.len() > SHOWN { format!(" and {} more", to.len() - SHOWN) } else { String::new() };
        for line in wrap(format!("{source} -> {shown}{more}"), table::text_width(), 2) {
            writeln!(out, "{line}")?;
        }
    }
    if destinations.len() > SHOWN {
        writeln!(out, "  {} more sources: see -o json", destinations.len() - SHOWN)?;
    }
    Ok(())
}

fn render(explanation: &Explanation) -> String {
    let color = ColorMode::detect();
    explanation.render(table::text_width(), |verdict, text: &str| color.verdict(verdict, text))
}

fn print_json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    Ok(writeln!(out, "{}", text::json(&serde_json::to_string_pretty(value)?))?)
}
