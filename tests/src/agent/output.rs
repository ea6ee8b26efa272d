//! Reads the agent's output on separate threads.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Mutex, PoisonError};

use super::Denied;

/// The output so far.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) denied: Vec<Denied>,
    pub(super) log: String,
}

/// Reads deny events, one JSON object in each line, until the end of standard output. Other lines are added to the log.
pub(super) fn read_denials(stdout: impl Read, output: &Mutex<Output>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        match serde_json::from_str(&line) {
            Ok(value) => output.denied.push(Denied(value)),
            Err(error) => {
                output.log += "(a line on stdout is not JSON: ";
                output.log += &error.to_string();
                output.log += "): ";
                output.log += &line;
                output.log.push('\n');
            }
        }
    }
}

pub(super) fn read_log(stderr: impl Read, output: &Mutex<Output>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.log += &line;
        output.log.push('\n');
    }
}
