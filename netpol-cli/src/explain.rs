//! `netpol explain`: explains why a connection is allowed or denied.

mod live_tables;

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Result, bail};
use netpol_policy::explain::{Explanation, Verdict};
use netpol_policy::reference::{ConnectionError, End};
use netpol_policy::text::Safe;
use serde::{Serialize, Serializer};

use crate::Exit;
use crate::args::{ExplainOptions, Output};
use crate::color::ColorMode;
use crate::ends::{self, EndArgument, EndSet, EndText};
use crate::input::{Input, InputReport};
use crate::live::{self, Ends, with_unlisted_objects};
use crate::output::print_json;
use crate::remote::{Kube, progress, runtime};
use crate::table;
use crate::unevaluated;
use crate::verdict::{Evaluator, VerdictError};

use live_tables::live_tables;

/// The maximum number of connections that are evaluated.
const MAX_CONNECTIONS: usize = 100_000;
/// The maximum number of sources listed for each verdict, and of destinations listed for each source.
const SHOWN: usize = 10;

/// The output of `-o json`, if each end is a single pod, address or Service.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    /// The verdicts of the nodes' tables, with `--live`.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<&'a live_tables::Tables>,
    input: InputReport<'a>,
}

/// The output of `-o json`, if an end can stand for several pods or addresses.
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
    /// The number of pairs without a verdict, because no connection between them is possible.
    impossible: usize,
    /// One of the connections with the worst verdict.
    example: &'a Explanation,
    input: InputReport<'a>,
}

/// The connections between two ends that stand for several pods or addresses.
#[derive(Default)]
struct Evaluated {
    /// The connections by verdict. The last item has the worst verdict.
    connections: Vec<Connections>,
    /// The number of pairs that cannot connect.
    impossible: usize,
    /// Why the first of these pairs cannot connect.
    reason: Option<ConnectionError>,
}

/// Connections with the same verdict.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connections {
    verdict: Verdict,
    /// Pairs of source and destination. Adjacent ranges of destinations are joined.
    #[serde(serialize_with = "as_texts")]
    pairs: Vec<[EndText; 2]>,
    /// The source and destination of the first connection.
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
    let (input, namespace) = read_input(options)?;
    input.report();
    let mut cluster = input.cluster(&options.input);
    let resolved = ends::resolve(&mut cluster, (&options.from, &options.to), &namespace);
    let (from, to) = resolved.map_err(|error| with_unlisted_objects(error, &input))?;
    let evaluate = Evaluator::new(&cluster);
    let ends = Ends { from: &options.from, to: &options.to, namespace: &namespace };
    let mut context = Context {
        options,
        input: &input,
        evaluate: &evaluate,
        unknown_because: ends.unknown_because(&input),
        live: None,
    };
    let mut live_exit = Exit::Ok;
    if options.live {
        let (answers, exit) = live_tables(options, (&from, &to))?;
        context.live = Some(answers);
        live_exit = exit;
    }
    let has_range = options.from.is_range() || options.to.is_range();
    let is_single = options.output == Output::Table && !has_range
        || is_always_single(&options.from, &from) && is_always_single(&options.to, &to);
    let verdict = match (&from.ends[..], &to.ends[..]) {
        ([(source, _)], [(destination, _)]) if is_single => context.print_one((source, destination), out),
        _ => context.print_several((&from, &to), out),
    };
    let verdict = verdict.map_err(|error| with_unlisted_objects(error, &input))?;
    if options.output == Output::Table {
        unevaluated::print(out, &input.parsed.unevaluated, table::text_width())?;
        if let Some(answers) = &context.live {
            live_tables::print(out, answers)?;
        }
    }
    Ok(match verdict {
        _ if !input.is_complete() => Exit::InvalidInput,
        Verdict::Allow => live_exit,
        Verdict::Unknown => Exit::Unknown,
        Verdict::Partial | Verdict::Deny => Exit::Negative,
    })
}

/// Returns whether an argument always stands for exactly one end. A headless Service does not: it stands for its pods,
/// and their number depends on the input.
fn is_always_single(argument: &EndArgument, set: &EndSet) -> bool {
    let is_pod = matches!(set.ends[..], [(End::Pod(_), _)]);
    argument.is_single() && !(matches!(argument, EndArgument::Service(..)) && is_pod)
}

/// Reads the input. Also returns the default namespace: it applies to ends that name no namespace.
fn read_input(options: &ExplainOptions) -> Result<(Input, String)> {
    if !options.input.paths.is_empty() {
        let namespace = options.namespace.clone().unwrap_or_else(|| "default".to_owned());
        return Ok((Input::read(&options.input), namespace));
    }
    runtime()?.block_on(async {
        let kube = Kube::open(&options.agents.kube, live::OR_MANIFESTS).await?;
        let namespace = options.namespace.clone().unwrap_or_else(|| kube.namespace.clone());
        let ends = Ends { from: &options.from, to: &options.to, namespace: &namespace };
        let input =
            progress("the objects of the cluster", live::read(&kube, &ends.needed(), live::RESPONSE_TIME)).await?;
        Ok((input, namespace))
    })
}

/// What is needed to print explanations.
struct Context<'a> {
    options: &'a ExplainOptions,
    input: &'a Input,
    evaluate: &'a Evaluator<'a>,
    /// Messages about objects that the user cannot list, and that may change the verdict.
    unknown_because: Vec<String>,
    /// The verdicts of the nodes' tables.
    live: Option<live_tables::Tables>,
}

impl Context<'_> {
    fn print_one(&self, ends: (&End, &End), out: &mut impl Write) -> Result<Verdict> {
        print_one(self, ends, out)
    }

    fn print_several(&self, ends: (&EndSet, &EndSet), out: &mut impl Write) -> Result<Verdict> {
        print_several(self, ends, out)
    }

    /// Returns the verdict, or `Unknown` if the user cannot list objects that may change the verdict.
    fn verdict_or_unknown(&self, verdict: Verdict) -> Verdict {
        if self.unknown_because.is_empty() { verdict } else { Verdict::Unknown }
    }

    /// Explains one connection.
    fn explain(&self, from: &End, to: &End) -> Result<Explanation> {
        let mut explanation = self.evaluate.explain(from, to, self.options.port)?;
        if !self.unknown_because.is_empty() {
            explanation.set_unknown(&self.unknown_because);
        }
        Ok(explanation)
    }
}

fn print_one(context: &Context<'_>, (from, to): (&End, &End), out: &mut impl Write) -> Result<Verdict> {
    let explanation = context.explain(from, to)?;
    match context.options.output {
        Output::Json => print_json(
            out,
            &JsonOutput { explanation: &explanation, live: context.live.as_ref(), input: context.input.json() },
        )?,
        Output::Table => write!(out, "{}", render(&explanation))?,
    }
    Ok(explanation.verdict)
}

fn print_several(context: &Context<'_>, (from, to): (&EndSet, &EndSet), out: &mut impl Write) -> Result<Verdict> {
    let Context { options, input, .. } = context;
    let Evaluated { connections, impossible, reason } = evaluate_all(context, from, to)?;
    let verdict = Verdict::of_several(connections.iter().map(|connections| connections.verdict));
    let (Some(worst), Some(verdict)) = (connections.last(), verdict) else {
        let reason = reason.map_or("they have no address family in common".to_owned(), |reason| reason.to_string());
        bail!("no connection from {} to {} is possible: {reason}", from.title, to.title)
    };
    let example = context.explain(&worst.first.0, &worst.first.1)?;
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
                impossible,
                example: &example,
                input: input.json(),
            },
        )?,
        Output::Table => {
            let word = ColorMode::detect().verdict(verdict, &verdict.name().to_uppercase());
            writeln!(out, "{word}: {} -> {}, {}", Safe(&from.title), Safe(&to.title), options.port)?;
            writeln!(out)?;
            let is_listed = connections.len() > 1 || impossible > 0 || !(is_uniform(from) && is_uniform(to));
            for connections in connections.iter().filter(|_| is_listed) {
                print_connections(out, connections)?;
            }
            if let Some(reason) = reason {
                let text = format!("not possible: {} ({reason})", table::counted(impossible, "connection"));
                table::paragraph(out, text, table::text_width(), 0)?;
            }
            writeln!(out, "{}An example:\n", if is_listed { "\n" } else { "" })?;
            write!(out, "{}", render(&example))?;
        }
    }
    Ok(verdict)
}

/// Returns whether a list of the ends would have no more information than the title: the set is one end or one range.
fn is_uniform(set: &EndSet) -> bool {
    set.ends.len() == 1 || set.ends.iter().all(|(_, text)| matches!(text, EndText::Addresses(..)))
}

/// Evaluates each connection. If there are several, connections of a pod to itself are omitted.
fn evaluate_all(context: &Context<'_>, from: &EndSet, to: &EndSet) -> Result<Evaluated> {
    let count = from.ends.len() * to.ends.len();
    if count > MAX_CONNECTIONS {
        bail!(
            "{} to {} are {count} connections, more than {MAX_CONNECTIONS}; use labels or a smaller range",
            from.title,
            to.title
        );
    }
    let (mut found, mut evaluated) = (BTreeMap::<Verdict, Connections>::new(), Evaluated::default());
    let pairs = from.ends.iter().flat_map(|source| to.ends.iter().map(move |destination| (source, destination)));
    for ((source, source_text), (destination, text)) in pairs {
        if source == destination && count > 1 {
            continue;
        }
        let verdict = match context.evaluate.verdict(source, destination, context.options.port) {
            Ok(verdict) => context.verdict_or_unknown(verdict),
            // These errors concern one pair. Other errors, such as a pod that does not exist, concern an argument.
            Err(VerdictError::Connection(
                reason @ (ConnectionError::NoCommonFamily(..)
                | ConnectionError::Finished(_)
                | ConnectionError::NoAddress(_)),
            )) => {
                evaluated.impossible += 1;
                evaluated.reason.get_or_insert(reason);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let first = || (source.clone(), destination.clone());
        let connections =
            found.entry(verdict).or_insert_with(|| Connections { verdict, pairs: Vec::new(), first: first() });
        connections.add(source_text, text);
    }
    Ok(Evaluated { connections: found.into_values().collect(), ..evaluated })
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
        table::paragraph(out, format!("{source} -> {shown}{more}"), table::text_width(), 2)?;
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
