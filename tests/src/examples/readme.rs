//! What an example's README promises: a command, and a table that people and tests read alike.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use netpol_policy::model::Protocol;

use crate::matrix::{Cell, Matrix};
use crate::port;

const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- /table -->";

/// Who is not asked: an end by itself, or two ends outside.
const NOT_ASKED: &str = "·";
const NOTHING: &str = "–";
const EVERYTHING: &str = "all";

/// A README, taken apart.
#[derive(Debug)]
pub(super) struct Readme {
    before: String,
    table: String,
    after: String,
    pub(super) command: Vec<String>,
    pub(super) ports: Vec<(Protocol, u16)>,
    pub(super) outside: Vec<String>,
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
        ensure!(!ports.is_empty(), "the command in README.md asks for no port");
        let outside = values("-a");
        let [before, table, after] = [before, table, after].map(str::to_owned);
        Ok(Self { before, table, after, command, ports, outside })
    }

    pub(super) fn text(&self) -> String {
        format!("{}{BEGIN}{}{END}{}", self.before, self.table, self.after)
    }

    /// What the table says.
    pub(super) fn table(&self) -> Result<Matrix> {
        let mut rows = self.table.lines().map(words);
        let header = rows.next().context("it is empty")?;
        let tos = header.get(1..).context("it has no columns")?;
        let mut found = BTreeMap::new();
        for row in rows.skip(1) {
            let (from, cells) = row.split_first().context("a row is empty")?;
            ensure!(cells.len() == tos.len(), "the row of {from} has {} cells for {} ends", cells.len(), tos.len());
            for (to, &cell) in tos.iter().zip(cells) {
                let allowed = match cell {
                    NOT_ASKED => continue,
                    NOTHING => Vec::new(),
                    EVERYTHING => self.ports.clone(),
                    list => list.split(", ").map(port::parse).collect::<Result<_>>()?,
                };
                if let Some(other) = allowed.iter().find(|port| !self.ports.contains(port)) {
                    bail!("{from} to {to}: {} is not among the ports of the command", port::text(*other));
                }
                for &(protocol, port) in &self.ports {
                    let cell = Cell { from: (*from).to_owned(), to: (*to).to_owned(), protocol, port };
                    found.insert(cell, allowed.contains(&(protocol, port)));
                }
            }
        }
        Ok(Matrix(found))
    }

    pub(super) fn put_table(&mut self, ends: &[String], matrix: &Matrix) {
        let mut text = format!("| from ↓ to → | {} |\n|---|{}\n", ends.join(" | "), "---|".repeat(ends.len()));
        for from in ends {
            let cells: Vec<_> = ends.iter().map(|to| self.cell(matrix, from, to)).collect();
            let _ = writeln!(text, "| {from} | {} |", cells.join(" | "));
        }
        self.table = text;
    }

    fn cell(&self, matrix: &Matrix, from: &str, to: &str) -> String {
        let answer = |&(protocol, port): &(Protocol, u16)| {
            matrix.0.get(&Cell { from: from.to_owned(), to: to.to_owned(), protocol, port })
        };
        if self.ports.iter().all(|port| answer(port).is_none()) {
            return NOT_ASKED.to_owned();
        }
        let allowed: Vec<_> = self.ports.iter().filter(|port| answer(port) == Some(&true)).copied().collect();
        if allowed.is_empty() {
            NOTHING.to_owned()
        } else if allowed.len() == self.ports.len() {
            EVERYTHING.to_owned()
        } else {
            allowed.into_iter().map(port::text).collect::<Vec<_>>().join(", ")
        }
    }
}

fn words(row: &str) -> Vec<&str> {
    row.trim().trim_matches('|').split('|').map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\n<!-- table -->\n\
        | from ↓ to → | a/b | 192.0.2.1 |\n|---|---|---|\n| a/b | · | 80/TCP |\n| 192.0.2.1 | all | · |\n\
        <!-- /table -->\n\n`netpol matrix -f examples/x -p 80/TCP -p 53/UDP -a 192.0.2.1` prints it.\n";

    #[test]
    fn a_table_is_read_as_it_is_written() -> Result<()> {
        let mut readme = Readme::parse(TEXT)?;
        assert_eq!(readme.outside, ["192.0.2.1"]);
        let matrix = readme.table()?;
        let said: Vec<_> = matrix.0.iter().map(|(cell, passes)| format!("{cell}: {passes}")).collect();
        assert_eq!(
            said,
            [
                "192.0.2.1 -> a/b 80/TCP: true",
                "192.0.2.1 -> a/b 53/UDP: true",
                "a/b -> 192.0.2.1 80/TCP: true",
                "a/b -> 192.0.2.1 53/UDP: false",
            ]
        );
        readme.put_table(&["a/b".to_owned(), "192.0.2.1".to_owned()], &matrix);
        assert_eq!(readme.text(), TEXT);
        Ok(())
    }
}
