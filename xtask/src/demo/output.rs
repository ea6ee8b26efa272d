//! Prints the demo's output: at most 100 columns, in color only on a terminal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use netpol_tests::{Cell, Matrix, Protocol};

use super::drops::Drops;
use super::inventory::Inventory;
use super::scenes::{ALIASES, Scene};

const WIDTH: usize = 100;
/// Width of the column with the names of hosts (pods and external hosts).
const NAME_WIDTH: usize = 9;
/// Maximum number of drop points that are printed for each scene, one on each line. A drop point is a pod, a direction,
/// a reason and policies. If there are more drop points, one more line has the sum of the rest.
const MAX_DROP_POINTS: usize = 10;

/// A port that the demo connects to, with the letter that stands for it in the tables.
type Port = (char, Protocol, u16);

pub(super) struct Printer {
    color: bool,
}

/// Styles of text, for terminals.
#[derive(Clone, Copy)]
enum Style {
    Bold,
    Dim,
    Good,
    Bad,
    Accent,
}

impl Style {
    /// Returns the parameters of the escape sequence SGR.
    const fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Bad => "1;31",
            Self::Accent => "1;36",
        }
    }
}

impl Printer {
    pub(super) fn new() -> Self {
        let color =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { color }
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.color { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
    }

    pub(super) fn title(&self, text: &str) {
        println!("\n{}\n", self.paint(Style::Bold, text));
    }

    /// Prints what the demo does now. [`Self::done`] prints the result below it.
    pub(super) fn progress(&self, what: &str) {
        print!("  {} {what} … ", self.paint(Style::Accent, "›"));
        // If stdout is closed, the next `println!` reports it.
        let _ = std::io::stdout().flush();
    }

    pub(super) fn done(&self, result: &str) {
        println!("\n    {}", self.paint(Style::Dim, result));
    }

    /// Explains the tables that [`Self::tables`] prints.
    pub(super) fn legend(&self, ports: &[Port]) {
        let letters: Vec<_> = ports
            .iter()
            .map(|(letter, protocol, port)| {
                format!("{} {port}/{}", self.paint(Style::Good, &letter.to_string()), protocol.name())
            })
            .collect();
        println!(
            "\n  Each cell shows the connections from the row to the column, one character for each port: {}.\n  \
             The port's letter means allowed, {} means dropped, {} means not as expected.",
            letters.join(", "),
            self.paint(Style::Dim, "·"),
            self.paint(Style::Bad, "!"),
        );
    }

    pub(super) fn heading(&self, text: &str) {
        let rule = "─".repeat(WIDTH.saturating_sub(text.chars().count() + 4));
        println!(
            "\n{} {} {}",
            self.paint(Style::Accent, "──"),
            self.paint(Style::Bold, text),
            self.paint(Style::Accent, &rule)
        );
    }

    pub(super) fn scene(&self, number: usize, total: usize, scene: &Scene) {
        self.heading(&format!("{number}/{total}  {}", scene.title));
        println!("{}", scene.about);
        for (_, policies) in scene.apply {
            self.policies(policies);
        }
    }

    /// Prints the policies of a file: a single policy in full, but only the names of several policies.
    fn policies(&self, yaml: &str) {
        let lines: Vec<_> = yaml.lines().skip_while(|line| !line.starts_with("metadata")).collect();
        if yaml.contains("\n---") {
            for line in lines.iter().filter(|line| line.starts_with("metadata")) {
                let name = line.trim_start_matches("metadata: {name: ").split(',').next().unwrap_or_default();
                println!("    {}", self.paint(Style::Dim, &format!("NetworkPolicy {name}")));
            }
            return;
        }
        for line in lines {
            println!("    {}", self.paint(Style::Dim, line));
        }
    }

    /// Prints two tables of connections between all hosts: measured on the left, expected on the right.
    pub(super) fn tables(&self, hosts: &[String], ports: &[Port], measured: &Matrix, expected: &Matrix) {
        let letter = |index: usize| char::from(b'A' + u8::try_from(index).unwrap_or_default());
        let header: Vec<_> = (0..hosts.len()).map(|index| format!("{:<4}", letter(index))).collect();
        let header = header.concat();
        let table_width = hosts.len() * 4;
        println!("\n  {:NAME_WIDTH$}{:<table_width$} expected", "", "measured");
        println!(
            "  {:NAME_WIDTH$}{} {}",
            "",
            self.paint(Style::Bold, &header),
            self.paint(Style::Bold, header.trim_end())
        );
        let mut group = "";
        for (index, from) in hosts.iter().enumerate() {
            let (namespace, name) = from.split_once('/').unwrap_or(("outside", from));
            let name = ALIASES.iter().find(|(address, _)| *address == name).map_or(name, |(_, alias)| alias);
            if namespace != group {
                println!("{}", self.paint(Style::Dim, namespace));
            }
            group = namespace;
            let left: String = hosts.iter().map(|to| self.cell(from, to, ports, measured, expected) + " ").collect();
            let right: String = hosts.iter().map(|to| self.cell(from, to, ports, expected, expected) + " ").collect();
            println!(
                "{} {name:<NAME_WIDTH$}{left} {}",
                self.paint(Style::Bold, &letter(index).to_string()),
                right.trim_end()
            );
        }
    }

    /// Returns the letters of the ports at which `shown` has an allowed connection between two hosts, and a character
    /// for each other port: see [`Self::legend`].
    fn cell(&self, from: &str, to: &str, ports: &[Port], shown: &Matrix, expected: &Matrix) -> String {
        ports
            .iter()
            .map(|&(letter, protocol, port)| {
                let cell = Cell { from: from.to_owned(), to: to.to_owned(), protocol, port };
                match (shown.0.get(&cell), expected.0.get(&cell)) {
                    (Some(shown), Some(expected)) if shown != expected => self.paint(Style::Bad, "!"),
                    (Some(true), _) => self.paint(Style::Good, &letter.to_string()),
                    (Some(false), _) => self.paint(Style::Dim, "·"),
                    (None, _) => " ".to_owned(),
                }
            })
            .collect()
    }

    /// Prints the number of allowed connections, and the number of connections that are not as expected.
    pub(super) fn summary(&self, measured: &Matrix, different: usize, elapsed: Duration) {
        let summary = if different == 0 {
            self.paint(Style::Good, "all as expected")
        } else {
            self.paint(Style::Bad, &format!("{different} NOT as expected"))
        };
        println!(
            "\n  {} of {} connections were allowed, measured in {:.1} s: {summary}.",
            measured.allowed(),
            measured.0.len(),
            elapsed.as_secs_f64()
        );
    }

    /// Prints where and why connections were dropped, with an example for each drop point.
    pub(super) fn drops(&self, drops: &Drops) {
        if drops.points.is_empty() && drops.unreported.is_empty() {
            return;
        }
        println!("  Where and why the others were dropped, as reported by the agent:");
        for (drop_point, cells) in drops.points.iter().take(MAX_DROP_POINTS) {
            let movement = if drop_point.direction == "egress" { "leaving" } else { "entering" };
            let policies: Vec<_> =
                drop_point.policies.iter().map(|name| name.split('/').next_back().unwrap_or(name)).collect();
            let line = format!(
                "{:>4}  {movement:<8} {:<14} {}: {}",
                cells.len(),
                drop_point.pod,
                drop_point.reason,
                policies.join(", ")
            );
            let example = cells.last().map(|cell| {
                let other = if drop_point.direction == "egress" {
                    format!("e.g. to {}", cell.to)
                } else {
                    format!("e.g. from {}", cell.from)
                };
                format!("{other} {}/{}", cell.port, cell.protocol.name())
            });
            println!("  {:<64}{}", shortened(&line, 62), self.paint(Style::Dim, &example.unwrap_or_default()));
        }
        if drops.points.len() > MAX_DROP_POINTS {
            let rest: usize = drops.points.values().skip(MAX_DROP_POINTS).map(Vec::len).sum();
            println!("  {rest:>4}  for other pods, directions, reasons or policies");
        }
        if !drops.unreported.is_empty() {
            let line =
                format!("{:>4}  dropped without a deny event, first {}", drops.unreported.len(), drops.unreported[0]);
            println!("  {}", self.paint(Style::Bad, &line));
        }
    }

    /// Prints what the demo created, and which of these objects remain after it was cleaned up.
    pub(super) fn print_cleanup_result(&self, inventory: &Inventory, remaining: &[String]) {
        println!("  Created: {}.", inventory.description());
        if remaining.is_empty() {
            println!("  {}", self.paint(Style::Good, "All of them are gone, as checked in the kernel."));
        }
        for object in remaining {
            println!("  {} {object}", self.paint(Style::Bad, "left behind:"));
        }
    }

    /// Prints the result of the whole demo. `wrong`: the number of connections that are not as expected, or that were
    /// dropped without a deny event.
    pub(super) fn verdict(&self, succeeded: bool, wrong: usize, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if succeeded {
            println!("\n{} {seconds:.1} s.\n", self.paint(Style::Good, "All measured connections match the policies."));
        } else {
            let text = format!(
                "Connections not as expected or not explained: {wrong}. See above, also for objects left behind."
            );
            println!("\n{} {seconds:.1} s.\n", self.paint(Style::Bad, &text));
        }
    }
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
