//! `netpol explain`.

use std::io::Write;

use anyhow::Result;
use netpol_policy::explain::Verdict;

use crate::Exit;
use crate::args::{ExplainOptions, Output};
use crate::color::Color;
use crate::input::Input;
use crate::placeholder;
use crate::verdict::Judge;

pub(crate) fn run(options: &ExplainOptions, out: &mut impl Write) -> Result<Exit> {
    let input = Input::read(&options.input);
    input.report();
    let mut world = input.world();
    placeholder::fill_in(&mut world);
    let judge = Judge::new(&world);
    let explanation = judge.explain(&options.from, &options.to, options.port)?;
    match options.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &explanation)?;
            writeln!(out)?;
        }
        Output::Table => {
            let text = explanation.to_string();
            let verdict = explanation.verdict.name().to_uppercase();
            let rest = text.strip_prefix(verdict.as_str()).unwrap_or(&text);
            let allowed = explanation.verdict == Verdict::Allow;
            write!(out, "{}{rest}", Color::detect().verdict(allowed, &verdict))?;
        }
    }
    Ok(match explanation.verdict {
        _ if !input.unreadable.is_empty() => Exit::Input,
        Verdict::Allow => Exit::Ok,
        Verdict::Some | Verdict::Deny => Exit::No,
    })
}
