//! Parses the README of a directory in `examples/`. The README contains a `netpol matrix` command. The command's
//! output is in the README, too: it is a table of allowed connections. Tests check the table.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use netpol_policy::model::Protocol;

use crate::matrix::{Cell, Matrix};
use crate::port;

const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- /table -->";

/// Text of a table cell for connections that are not probed: from a host to itself, or between two external hosts.
const NO_PROBE: &str = "·";
/// Text of a table cell if no port is allowed.
const NO_PORT: &str = "–";
/// Text of a table cell if all ports of the command are allowed.
const ALL_PORTS: &str = "all";

/// A parsed README.
#[derive(Debug)]
pub(super) struct Readme {
    /// The text before the table.
    before: String,
    table: String,
    /// The text after the table.
    after: String,
    /// The arguments of `netpol`.
    pub(super) command: Vec<String>,
    /// The ports of the command (`-p`).
    pub(super) ports: Vec<(Protocol, u16)>,
    /// The addresses of the command (`-a`).
    pub(super) external_hosts: Vec<String>,
}

impl Readme {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (before, rest) = text.split_once(BEGIN).with_context(|| format!("README.md has no {BEGIN:?}"))?;
        let (table, after) = rest.split_once(END).with_context(|| format!("README.md has no {END:?}"))?;
        let command = after.split('`').find_map(|code| code.strip_prefix("netpol matrix "));
        let command = command.context("README.md has no `netpol matrix …` after its table")?;
        let command: Vec<_> = ["matrix"].into_iter().chain(command.split_whitespace()).map(str::to_owned).collect();
        let values = |option: &str| {
            let pairs = command.windows(2).filter(|pair| pair[0] == option);
            pairs.map(|pair| pair[1].clone()).collect::<Vec<_>>()
        };
        let ports = values("-p").iter().map(|text| port::parse(text)).collect::<Result<Vec<_>>>()?;
        ensure!(!ports.is_empty(), "the command in README.md has no port (-p)");
        let external_hosts = values("-a");
        let [before, table, after] = [before, table, after].map(str::to_owned);
        Ok(Self { before, table, after, command, ports, external_hosts })
    }

    /// Returns the text of the README.
    pub(super) fn text(&self) -> String {
        format!("{}{BEGIN}{}{END}{}", self.before, self.table, self.after)
    }

    /// Parses the table.
    pub(super) fn table(&self) -> Result<Matrix> {
        let mut rows = self.table.lines().map(split_cells);
        let header = rows.next().context("the table is empty")?;
        let destinations = header.get(1..).context("the table has no columns")?;
        let mut found = BTreeMap::new();
        for row in rows.skip(1) {
            let (from, cells) = row.split_first().context("a row is empty")?;
            ensure!(
                cells.len() == destinations.len(),
                "the row of {from} has {} cells for {} columns",
                cells.len(),
                destinations.len()
            );
            for (to, &cell_text) in destinations.iter().zip(cells) {
                let allowed = match cell_text {
                    NO_PROBE => continue,
                    NO_PORT => Vec::new(),
                    ALL_PORTS => self.ports.clone(),
                    list => list.split(", ").map(port::parse).collect::<Result<_>>()?,
                };
                if let Some(other) = allowed.iter().find(|port| !self.ports.contains(port)) {
                    bail!("{from} to {to}: the command has no port {}", port::text(*other));
                }
                for &(protocol, port) in &self.ports {
                    let cell = Cell { from: (*from).to_owned(), to: (*to).to_owned(), protocol, port };
                    found.insert(cell, allowed.contains(&(protocol, port)));
                }
            }
        }
        Ok(Matrix(found))
    }

    /// Replaces the table by the verdicts of a matrix. The table has a row and a column for each of `hosts`.
    pub(super) fn set_table(&mut self, hosts: &[String], matrix: &Matrix) {
        let mut text = format!("| from ↓ to → | {} |\n|---|{}\n", hosts.join(" | "), "---|".repeat(hosts.len()));
        for from in hosts {
            let cells: Vec<_> = hosts.iter().map(|to| self.cell_text(matrix, from, to)).collect();
            let _ = writeln!(text, "| {from} | {} |", cells.join(" | "));
        }
        self.table = text;
    }

    fn cell_text(&self, matrix: &Matrix, from: &str, to: &str) -> String {
        let verdict = |&(protocol, port): &(Protocol, u16)| {
            matrix.0.get(&Cell { from: from.to_owned(), to: to.to_owned(), protocol, port })
        };
        if self.ports.iter().all(|port| verdict(port).is_none()) {
            return NO_PROBE.to_owned();
        }
        let allowed: Vec<_> = self.ports.iter().filter(|port| verdict(port) == Some(&true)).copied().collect();
        if allowed.is_empty() {
            NO_PORT.to_owned()
        } else if allowed.len() == self.ports.len() {
            ALL_PORTS.to_owned()
        } else {
            allowed.into_iter().map(port::text).collect::<Vec<_>>().join(", ")
        }
    }
}

fn split_cells(row: &str) -> Vec<&str> {
    row.trim().trim_matches('|').split('|').map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\n<!-- table -->\n\
        | from ↓ to → | a/b | 192.0.2.1 |\n|---|---|---|\n| a/b | · | 80/TCP |\n| 192.0.2.1 | all | · |\n\
        <!-- /table -->\n\n`netpol matrix -f examples/x -p 80/TCP -p 53/UDP -a 192.0.2.1` prints it.\n";

    #[test]
    fn a_parsed_table_is_written_as_it_was() -> Result<()> {
        let mut readme = Readme::parse(TEXT)?;
        assert_eq!(readme.external_hosts, ["192.0.2.1"]);
        let matrix = readme.table()?;
        let lines: Vec<_> = matrix.0.iter().map(|(cell, passes)| format!("{cell}: {passes}")).collect();
        assert_eq!(
            lines,
            [
                "192.0.2.1 -> a/b 80/TCP: true",
                "192.0.2.1 -> a/b 53/UDP: true",
                "a/b -> 192.0.2.1 80/TCP: true",
                "a/b -> 192.0.2.1 53/UDP: false",
            ]
        );
        readme.set_table(&["a/b".to_owned(), "192.0.2.1".to_owned()], &matrix);
        assert_eq!(readme.text(), TEXT);
        Ok(())
    }
}
