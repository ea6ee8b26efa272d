//! `netpol`: evaluates network policies from manifests or from the objects of a cluster, and shows what the agents of a
//! cluster enforce.

mod args;
mod assert;
mod color;
mod columns;
mod connection;
mod diff;
mod ends;
mod explain;
mod flow_file;
mod flows;
mod generate;
mod graph;
mod input;
mod lint;
mod lists;
mod live;
mod matrix;
mod message;
mod nodes;
mod output;
mod record;
mod remote;
mod scope;
mod shadow;
mod shell;
mod suspend;
mod table;
mod top;
mod unevaluated;
mod verdict;
mod wait;
mod why;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use netpol_policy::text::Safe;

use args::{Arguments, Command, ShadowCommand};
use message::message;

/// The exit codes. `--help` lists them, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done. `explain`: allowed; `lint`: no finding of the severity of `--fail-on` or above; `assert`: all expectations
    /// are met; `wait`: enforced.
    Ok = 0,
    /// `explain`: denied, or only some connections or backends allowed, or with `--live` the compiled tables of a node
    /// deny the connection; `lint`: a finding of the severity of `--fail-on` or above; `assert`: an expectation fails;
    /// `diff` with `--exit-code`: a connection changes; `wait`: not enforced.
    Negative = 1,
    /// Some input could not be read or is invalid, the input does not have a requested object, the API server does not
    /// respond, or no agent responds. (Code 2 is missing here: clap uses it for wrong usage.)
    InvalidInput = 3,
    /// The verdict depends on a policy of a kind that netpol does not evaluate, on an unknown address, or on objects
    /// that the user cannot list.
    Unknown = 4,
    /// Some nodes did not respond; the output has only the nodes that did.
    Partial = 5,
    /// A bug in netpol (`EX_SOFTWARE` of sysexits.h): the compiled tables have another verdict than the reference
    /// evaluator, which evaluates the objects directly. Or the policies that `netpol record` creates deny a recorded
    /// flow.
    Bug = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

fn main() -> ExitCode {
    let arguments = arguments();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = match &arguments.command {
        Command::Matrix(options) => matrix::run(options, &mut out),
        Command::Explain(options) => explain::run(options, &mut out),
        Command::Assert(options) => assert::run(options, &mut out),
        Command::Diff(options) => diff::run(options, &mut out),
        Command::Graph(options) => graph::run(options, &mut out),
        Command::Lint(options) => lint::run(options, &mut out),
        Command::Flows(options) => flows::run(options, &mut out),
        Command::Top(options) => top::run(options, &mut out),
        Command::Status(options) => nodes::run(options, &mut out),
        Command::Endpoints(options) => lists::endpoints(options, &mut out),
        Command::Policies(options) => lists::policies(options, &mut out),
        Command::Shadow(ShadowCommand::Report(options)) => shadow::run(options, &mut out),
        Command::Record(options) => record::run(options, &mut out),
        Command::Why(options) => why::run(options, &mut out),
        Command::Wait(options) => wait::run(options, &mut out),
        Command::Suspend(options) => suspend::suspend(options, &mut out),
        Command::Resume(options) => suspend::resume(options, &mut out),
        Command::Completion { shell } => generate::completion(*shell, &mut out),
        Command::Man { directory } => generate::manual(directory),
    };
    match result.and_then(|exit| out.flush().map(|()| exit).map_err(Into::into)) {
        Ok(exit) => exit.into(),
        // Another process has closed the pipe to which the output is written, as in `netpol matrix … | head`.
        Err(error) if is_broken_pipe(&error) => Exit::Ok.into(),
        Err(error) => {
            message!("netpol: {}", Safe(format_args!("{error:#}")));
            let is_bug = matches!(error.downcast_ref(), Some(verdict::VerdictError::Mismatch { .. }))
                || error.is::<netpol_policy::record::RecordError>();
            if is_bug { Exit::Bug } else { Exit::InvalidInput }.into()
        }
    }
}

/// Parses the command line. If kubectl has started the program as its plugin (`kubectl-netpol`), the help has the name
/// `kubectl netpol`.
fn arguments() -> Arguments {
    let program = std::env::args_os().next().unwrap_or_default();
    let is_plugin = Path::new(&program).file_stem().is_some_and(|name| name == "kubectl-netpol");
    let command = Arguments::command().bin_name(if is_plugin { "kubectl netpol" } else { "netpol" });
    let parsed = Arguments::from_arg_matches(&command.get_matches());
    parsed.unwrap_or_else(|error| error.exit())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
