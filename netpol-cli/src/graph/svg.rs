//! Prints the graph as SVG, without references to other files.

use std::io::{self, Write};

use super::layout::{Size, place};
use super::model::{EdgeEnd, Graph, Node};
use crate::assert::xml;

/// Width and height of a character.
const CHARACTER: Size = (7.0, 16.0);
/// The distance from the border of a box to its text.
const PADDING: f64 = 8.0;
/// The height of the heading of a group: the name of its namespace, or `outside addresses`.
const HEADING: f64 = 24.0;
/// The maximum number of characters of a line. Longer lines are shortened.
const MAX_LINE: usize = 44;

/// If there are more edges than this, edges have no labels.
const MAX_LABELS: usize = 400;
/// The width that the legend needs.
const MIN_WIDTH: f64 = 620.0;
const LEGEND_HEIGHT: f64 = 76.0;
const LEGEND: [&str; 3] = [
    "in: ports allowed from all sources; out: ports allowed to all destinations",
    "arrow: other allowed ports (point at it for the full list); dashed arrow: unknown",
    "dashed box: the policies of these pods allow all connections to them",
];

const STYLE: &str = "text{font:12px ui-monospace,monospace;fill:#1f2328}.ns{font-weight:bold}.group{fill:#f6f8fa;stroke:#8c959f}\
.node{fill:#fff;stroke:#0969da;stroke-width:1.5}.accepts-all{stroke:#9a6700;stroke-dasharray:4 3}.edge{fill:none;stroke:#57606a;\
stroke-width:1.2;stroke-opacity:.6}.edge:hover{stroke:#cf222e;stroke-width:3;stroke-opacity:1}.unknown{stroke-dasharray:5 4}.label{font-size:10px;paint-order:stroke;stroke:#fff;stroke-width:3px}";

/// A rectangle: left, top, width and height.
#[derive(Clone, Copy)]
struct Rect(f64, f64, f64, f64);

pub(super) fn print(out: &mut impl Write, graph: &Graph) -> io::Result<()> {
    let (nodes, groups, size) = positions(graph);
    let (width, height) = ((size.0 + 40.0).max(MIN_WIDTH), size.1 + 40.0 + LEGEND_HEIGHT);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\">\n\
         <title>Allowed connections</title>\n<style>{STYLE}</style>\n<defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" \
         markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#57606a\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
    )?;
    for (line, y) in LEGEND.iter().zip([22, 38, 54]) {
        writeln!(out, "<text x=\"20\" y=\"{y}\">{line}</text>")?;
    }
    writeln!(out, "<g transform=\"translate(20 {LEGEND_HEIGHT})\">")?;
    for ((name, _), Rect(x, y, w, h)) in graph.groups.iter().zip(&groups) {
        writeln!(out, "<rect class=\"group\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" rx=\"6\"/>")?;
        let (x, y) = (x + PADDING, y + 17.0);
        writeln!(out, "<text class=\"ns\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", xml(&shorten(name)))?;
    }
    let rect = |end: EdgeEnd| match end {
        EdgeEnd::Node(index) => nodes[index],
        EdgeEnd::Group(index) => groups[index],
    };
    let curves: Vec<_> = graph.edges.iter().map(|edge| curve(rect(edge.from), rect(edge.to))).collect();
    for (edge, (path, ..)) in graph.edges.iter().zip(&curves) {
        let class = if edge.is_unknown { "edge unknown" } else { "edge" };
        let title = xml(&format!("{} -> {}: {}", graph.name(edge.from), graph.name(edge.to), edge.label));
        writeln!(out, "<path class=\"{class}\" d=\"{path}\" marker-end=\"url(#arrow)\"><title>{title}</title></path>")?;
    }
    graph.nodes.iter().zip(&nodes).try_for_each(|(node, rect)| print_node(out, node, *rect))?;
    // More labels would overlap. The text of a label is also in the title of its edge, which a browser shows at the
    // pointer.
    if graph.edges.len() <= MAX_LABELS {
        for (edge, (_, x, y)) in graph.edges.iter().zip(&curves) {
            let label = xml(&shorten(&edge.label));
            writeln!(out, "<text class=\"label\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{label}</text>")?;
        }
    }
    writeln!(out, "</g>\n</svg>")
}

/// Prints the box of a node (workloads or addresses).
fn print_node(out: &mut impl Write, node: &Node, Rect(x, y, w, h): Rect) -> io::Result<()> {
    let class = if node.accepts_all { "node accepts-all" } else { "node" };
    let members = xml(&node.members.join(", "));
    writeln!(out, "<g><title>{members}</title>")?;
    writeln!(out, "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" rx=\"4\"/>")?;
    let mut line_y = y + PADDING - 4.0;
    for line in &node.lines {
        line_y += CHARACTER.1;
        writeln!(out, "<text x=\"{:.1}\" y=\"{line_y:.1}\">{}</text>", x + PADDING, xml(&shorten(line)))?;
    }
    writeln!(out, "</g>")
}

/// Places the nodes within each group (a namespace, or the addresses), and then the groups. Returns the rectangles of
/// nodes, the rectangles of groups, and the size of the whole graph.
fn positions(graph: &Graph) -> (Vec<Rect>, Vec<Rect>, Size) {
    let group_of = |node: usize| graph.groups.iter().position(|(_, nodes)| nodes.contains(&node)).unwrap_or_default();
    let mut nodes = vec![Rect(0.0, 0.0, 0.0, 0.0); graph.nodes.len()];
    let mut sizes = Vec::new();
    for (_, members) in &graph.groups {
        let node_sizes: Vec<Size> = members.iter().map(|index| size(&graph.nodes[*index])).collect();
        let position = |end: EdgeEnd| match end {
            EdgeEnd::Node(index) => members.iter().position(|member| *member == index),
            EdgeEnd::Group(_) => None,
        };
        let edges = graph.edges.iter().filter_map(|edge| Some((position(edge.from)?, position(edge.to)?)));
        let placed = place(&node_sizes, &edges.collect::<Vec<_>>());
        for ((index, corner), size) in members.iter().zip(&placed.corners).zip(&node_sizes) {
            nodes[*index] = Rect(corner.0, corner.1, size.0, size.1);
        }
        sizes.push((placed.size.0 + 2.0 * PADDING, placed.size.1 + 2.0 * PADDING + HEADING));
    }
    let group = |end: EdgeEnd| match end {
        EdgeEnd::Node(index) => group_of(index),
        EdgeEnd::Group(index) => index,
    };
    let edges: Vec<_> = graph.edges.iter().map(|edge| (group(edge.from), group(edge.to))).collect();
    let placed = place(&sizes, &edges);
    for ((_, members), corner) in graph.groups.iter().zip(&placed.corners) {
        for index in members {
            nodes[*index].0 += corner.0 + PADDING;
            nodes[*index].1 += corner.1 + PADDING + HEADING;
        }
    }
    let groups = placed.corners.iter().zip(&sizes).map(|(corner, size)| Rect(corner.0, corner.1, size.0, size.1));
    (nodes, groups.collect(), placed.size)
}

fn size(node: &Node) -> Size {
    let longest = node.lines.iter().map(|line| line.chars().count().min(MAX_LINE)).max().unwrap_or_default();
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let width = number(longest.max(8)) * CHARACTER.0 + 2.0 * PADDING + 6.0;
    (width, number(node.lines.len()) * CHARACTER.1 + 2.0 * PADDING - 4.0)
}

/// Returns a curve between two boxes (the attribute `d` of an SVG path), and the position of its label.
fn curve(from: Rect, to: Rect) -> (String, f64, f64) {
    let middle = |Rect(x, y, w, h): Rect| (x + w / 2.0, y + h / 2.0);
    let ((from_x, from_y), (to_x, to_y)) = (middle(from), middle(to));
    let is_beside = to.0 > from.0 + from.2 || to.0 + to.2 < from.0;
    let (start, end, bend) = if is_beside {
        let right = to_x > from_x;
        let start = if right { from.0 + from.2 } else { from.0 };
        let end = if right { to.0 } else { to.0 + to.2 };
        ((start, from_y), (end, to_y), ((end - start) / 2.0, 0.0))
    } else {
        let below = to_y > from_y;
        let start = if below { from.1 + from.3 } else { from.1 };
        let end = if below { to.1 } else { to.1 + to.3 };
        ((from_x, start), (to_x, end), (0.0, (end - start) / 2.0))
    };
    let path = format!(
        "M{:.1} {:.1}C{:.1} {:.1} {:.1} {:.1} {:.1} {:.1}",
        start.0,
        start.1,
        start.0 + bend.0,
        start.1 + bend.1,
        end.0 - bend.0,
        end.1 - bend.1,
        end.0,
        end.1
    );
    // The label is near the destination, where fewer edges overlap.
    (path, start.0 + (end.0 - start.0) * 0.75, start.1 + (end.1 - start.1) * 0.75 - 3.0)
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= MAX_LINE {
        return text.to_owned();
    }
    text.chars().take(MAX_LINE - 1).chain(['…']).collect()
}
