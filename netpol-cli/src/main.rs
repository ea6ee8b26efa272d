//! `netpol`: evaluates network policies offline, from manifests, and waits until this node enforces them.

mod args;
mod color;
mod ends;
mod explain;
mod generate;
mod input;
mod lint;
mod matrix;
mod table;
mod unevaluated;
mod verdict;
mod wait;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use netpol_policy::text::Safe;

use args::{Arguments, Command};

/// The exit codes, as listed in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done; `explain`: allowed; `lint`: no errors.
    Ok = 0,
    /// `explain`: denied, or only some connections or backends allowed; `lint`: errors found; `wait`: not enforced.
    Negative = 1,
    /// Some input could not be read, or a requested object is not in it; `wait`: no agent responds. clap uses 2 for
    /// wrong usage.
    InvalidInput = 3,
    /// The verdict depends on something that netpol does not evaluate, or on an unknown address.
    Unknown = 4,
    /// The compiled tables and the reference differ, which is a bug in netpol (`EX_SOFTWARE` of sysexits.h).
    Bug = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = match &arguments.command {
        Command::Matrix(options) => matrix::run(options, &mut out),
        Command::Explain(options) => explain::run(options, &mut out),
        Command::Lint(options) => lint::run(options, &mut out),
        Command::Wait(options) => wait::run(options, &mut out),
        Command::Completion { shell } => generate::completion(*shell, &mut out),
        Command::Man { directory } => generate::manual(directory),
    };
    match result.and_then(|exit| out.flush().map(|()| exit).map_err(Into::into)) {
        Ok(exit) => exit.into(),
        // The reader of the output has closed it, as in `netpol matrix … | head`.
        Err(error) if is_broken_pipe(&error) => Exit::Ok.into(),
        Err(error) => {
            eprintln!("netpol: {}", Safe(format_args!("{error:#}")));
            let is_bug = matches!(error.downcast_ref(), Some(verdict::VerdictError::Mismatch { .. }));
            if is_bug { Exit::Bug } else { Exit::InvalidInput }.into()
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
