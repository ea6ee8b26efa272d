//! `netpol explain`.

use std::io::Write;

use anyhow::Result;
use netpol_policy::explain::{Explanation, Verdict};
use netpol_policy::text;
use serde::Serialize;

use crate::Exit;
use crate::args::{ExplainOptions, Output};
use crate::color::Color;
use crate::input::{Input, InputReport};
use crate::table;
use crate::verdict::Evaluator;

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    input: InputReport<'a>,
}

pub(crate) fn run(options: &ExplainOptions, out: &mut impl Write) -> Result<Exit> {
    let input = Input::read(&options.input);
    input.report();
    let cluster_state = input.cluster_state(true);
    let evaluate = Evaluator::new(&cluster_state);
    let explanation = evaluate.explain(&options.from, &options.to, options.port)?;
    match options.output {
        Output::Json => {
            writeln!(
                out,
                "{}",
                text::json(&serde_json::to_string_pretty(&JsonOutput {
                    explanation: &explanation,
                    input: input.json()
                })?)
            )?;
        }
        Output::Table => {
            let color = Color::detect();
            let paint = |verdict, text: &str| color.verdict(verdict == Verdict::Allow, text);
            write!(out, "{}", explanation.render(table::text_width(), paint))?;
        }
    }
    Ok(match explanation.verdict {
        _ if !input.is_complete() => Exit::Input,
        Verdict::Allow => Exit::Ok,
        Verdict::Some | Verdict::Deny => Exit::No,
    })
}
