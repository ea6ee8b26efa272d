//! The executable of the CNI plugin `netpol-cni`: reads environment variables and stdin, and writes to stdout and
//! stderr.

use std::fmt::Display;
use std::io::{Read, Write, stderr, stdin, stdout};
use std::process::ExitCode;

use netpol_cni::{CniError, Environment, ErrorCode, PLUGIN, run};

/// Maximum size of the configuration in bytes. Real configurations are smaller.
const MAX_INPUT: u64 = 4 << 20;

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let result = read_input(&environment)
        .and_then(|input| run(&environment, &input, &mut |message| log(&message)).map_err(|error| (error, input)));
    let (output, exit_code) = match result {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err((error, input)) => (error.to_json(&input), ExitCode::FAILURE),
    };
    if let Err(error) = stdout().write_all(output.as_bytes()) {
        log(&format_args!("cannot write the result: {error}"));
        return ExitCode::FAILURE;
    }
    exit_code
}

/// Reads the configuration from stdin. Without `CNI_COMMAND`, does not read stdin: if a user starts the plugin by hand,
/// stdin is a terminal, and the user gets the error of [`run`] immediately.
fn read_input(environment: &Environment) -> Result<String, (CniError, String)> {
    let mut input = String::new();
    if environment.command.is_empty() {
        return Ok(input);
    }
    match stdin().take(MAX_INPUT).read_to_string(&mut input) {
        Ok(_) => Ok(input),
        Err(error) => Err((CniError::new(ErrorCode::Io, format!("cannot read the configuration: {error}")), input)),
    }
}

/// Writes a message for the log of the container runtime. The plugin does not fail if stderr is closed.
fn log(message: &dyn Display) {
    let _ = writeln!(stderr(), "{PLUGIN}: {message}");
}
