//! Prints the graph in the languages of Graphviz and Mermaid.

use std::io::{self, Write};

use netpol_policy::text::Safe;

use super::model::{EdgeEnd, Graph};

/// Prints a graph for Graphviz, with a box (a `cluster` subgraph) for each namespace.
pub(super) fn dot(out: &mut impl Write, graph: &Graph) -> io::Result<()> {
    let escaped = |text: &str| Safe(text).to_string().replace('\\', "\\\\").replace('"', "\\\"");
    writeln!(out, "digraph netpol {{\n  rankdir=LR;\n  compound=true;\n  node [shape=box];")?;
    for (number, (name, nodes)) in graph.groups.iter().enumerate() {
        writeln!(out, "  subgraph cluster_{number} {{\n    label=\"{}\";", escaped(name))?;
        for index in nodes {
            let lines: Vec<String> = graph.nodes[*index].lines.iter().map(|line| escaped(line)).collect();
            let style = if graph.nodes[*index].accepts_all { ", style=dashed" } else { "" };
            writeln!(out, "    n{index} [label=\"{}\"{style}];", lines.join("\\n"))?;
        }
        writeln!(out, "  }}")?;
    }
    // In Graphviz, an edge always connects two nodes. So an edge of a group connects one node of the group, but is
    // drawn only up to the border of the group (`lhead`, `ltail`).
    let node = |end: EdgeEnd| match end {
        EdgeEnd::Node(index) => index,
        EdgeEnd::Group(group) => graph.groups[group].1.first().copied().unwrap_or_default(),
    };
    for edge in &graph.edges {
        let border = |name: &str, end: EdgeEnd| match end {
            EdgeEnd::Node(_) => String::new(),
            EdgeEnd::Group(group) => format!(", {name}=cluster_{group}"),
        };
        let style = if edge.is_unknown { ", style=dashed" } else { "" };
        let borders = format!("{}{}", border("ltail", edge.from), border("lhead", edge.to));
        let label = escaped(&edge.label);
        writeln!(out, "  n{} -> n{} [label=\"{label}\"{style}{borders}];", node(edge.from), node(edge.to))?;
    }
    writeln!(out, "}}")
}

/// Prints a flowchart for Mermaid, with a subgraph for each namespace.
pub(super) fn mermaid(out: &mut impl Write, graph: &Graph) -> io::Result<()> {
    // Mermaid has entities, but no escapes:
    // <https://mermaid.js.org/syntax/flowchart.html#special-characters-that-break-syntax>.
    let escaped = |text: &str| Safe(text).to_string().replace('#', "#35;").replace('"', "#quot;").replace('<', "#lt;");
    writeln!(out, "flowchart LR")?;
    for (number, (name, nodes)) in graph.groups.iter().enumerate() {
        writeln!(out, "  subgraph g{number}[\"{}\"]", escaped(name))?;
        for index in nodes {
            let lines: Vec<String> = graph.nodes[*index].lines.iter().map(|line| escaped(line)).collect();
            writeln!(out, "    n{index}[\"{}\"]", lines.join("<br>"))?;
        }
        writeln!(out, "  end")?;
    }
    let id = |end: EdgeEnd| match end {
        EdgeEnd::Node(index) => format!("n{index}"),
        EdgeEnd::Group(index) => format!("g{index}"),
    };
    for edge in &graph.edges {
        let arrow = if edge.is_unknown { "-.->" } else { "-->" };
        writeln!(out, "  {} {arrow}|\"{}\"| {}", id(edge.from), escaped(&edge.label), id(edge.to))?;
    }
    Ok(())
}
