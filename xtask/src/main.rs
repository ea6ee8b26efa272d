//! Commands for developers and CI: see `cargo xtask --help`.

#[cfg(feature = "lab")]
mod bench;
mod binaries;
mod cli;
mod debian;
#[cfg(feature = "lab")]
mod demo;
mod doctor;
mod ebpf;
mod image;
mod kernels;
mod krew;
mod kubectl;
// Used only if xtask was built without the feature `lab`: builds xtask with this feature, and runs the command again.
#[cfg(not(feature = "lab"))]
mod lab;
mod prometheus;
mod run;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::dispatch(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
