//! `netpol completion` and `netpol man`: completion scripts and manual pages, which clap generates from the options.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::Exit;
use crate::args::Arguments;

/// Writes the completion script of a shell.
pub(crate) fn completion(shell: clap_complete::Shell, out: &mut impl Write) -> Result<Exit> {
    // `generate` panics if it cannot write, such as to a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "netpol", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Ok)
}

/// Writes `netpol.1`, and a page such as `netpol-lint.1` for each command.
pub(crate) fn manual(directory: &Path) -> Result<Exit> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    clap_mangen::generate_to(Arguments::command(), directory)
        .with_context(|| format!("writing manual pages to {}", directory.display()))?;
    Ok(Exit::Ok)
}
