//! Computes the positions of the boxes in an SVG of `netpol graph`. The crate layout-rs places boxes with edges in
//! layers (columns, from left to right). All other boxes are placed in rows below the layers.

use layout::core::base::Orientation;
use layout::core::format::{ClipHandle, RenderBackend};
use layout::core::geometry::Point;
use layout::core::style::StyleAttr;
use layout::std_shapes::shapes::{Arrow, Element, ShapeKind};
use layout::topo::layout::VisualGraph;

/// The distance between boxes.
const GAP: f64 = 40.0;
/// For each box, the maximum number of incoming edges that are passed to layout-rs. The time that layout-rs needs grows
/// fast with the number of edges.
const MAX_INCOMING_EDGES: usize = 2;
/// The maximum number of boxes that are placed in layers.
const MAX_BOXES: usize = 150;

/// Width and height.
pub(super) type Size = (f64, f64);

/// The top left corners of boxes, and the size of the area that they need.
pub(super) struct Placed {
    pub(super) corners: Vec<(f64, f64)>,
    pub(super) size: Size,
}

/// Places boxes so that most edges lead to the right. `edges`: the indices of both boxes, as `(from, to)`.
pub(super) fn place(sizes: &[Size], edges: &[(usize, usize)]) -> Placed {
    let mut incoming_edges = vec![0_usize; sizes.len()];
    // The edges that are passed to layout-rs: at most one between two boxes.
    let mut chosen = Vec::new();
    for (from, to) in edges {
        let is_chosen = chosen.contains(&(*from, *to)) || chosen.contains(&(*to, *from));
        if from != to && incoming_edges[*to] < MAX_INCOMING_EDGES && !is_chosen {
            incoming_edges[*to] += 1;
            chosen.push((*from, *to));
        }
    }
    let has_edge = |index: usize| chosen.iter().any(|(from, to)| *from == index || *to == index);
    let connected: Vec<usize> = (0..sizes.len()).filter(|index| has_edge(*index)).take(MAX_BOXES).collect();
    let mut corners = vec![(0.0, 0.0); sizes.len()];
    let layers = place_in_layers(sizes, &connected, &chosen, &mut corners);
    let others: Vec<usize> = (0..sizes.len()).filter(|index| !connected.contains(index)).collect();
    let top = if connected.is_empty() || others.is_empty() { layers.1 } else { layers.1 + GAP };
    let rows = place_in_rows(sizes, &others, top, layers.0, &mut corners);
    Placed { corners, size: (layers.0.max(rows.0), layers.1.max(rows.1)) }
}

/// Places boxes in layers. Returns the size of the area that they need.
fn place_in_layers(sizes: &[Size], boxes: &[usize], edges: &[(usize, usize)], corners: &mut [(f64, f64)]) -> Size {
    if boxes.is_empty() {
        return (0.0, 0.0);
    }
    let orientation = Orientation::LeftToRight;
    let mut graph = VisualGraph::new(orientation);
    let handles: Vec<_> = boxes
        .iter()
        .map(|index| {
            let size = Point::new(sizes[*index].0 + GAP, sizes[*index].1 + GAP / 2.0);
            graph.add_node(Element::create(ShapeKind::new_box(""), StyleAttr::simple(), orientation, size))
        })
        .collect();
    let position = |index: usize| boxes.iter().position(|other| *other == index);
    for (from, to) in edges {
        if let (Some(from), Some(to)) = (position(*from), position(*to)) {
            graph.add_edge(Arrow::simple(""), handles[from], handles[to]);
        }
    }
    // The options `debug_mode`, `disable_opt` (no optimization of the layers) and `disable_layout`.
    graph.do_it(false, true, false, &mut NoDrawing);
    let center = |handle| graph.pos(handle).center();
    let corner = |index: usize, center: Point| (center.x - sizes[index].0 / 2.0, center.y - sizes[index].1 / 2.0);
    for (index, handle) in boxes.iter().zip(&handles) {
        corners[*index] = corner(*index, center(*handle));
    }
    let smallest = |coordinate: fn(&(f64, f64)) -> f64| {
        boxes.iter().map(|index| coordinate(&corners[*index])).fold(f64::MAX, f64::min)
    };
    let (left, top) = (smallest(|corner| corner.0), smallest(|corner| corner.1));
    let mut area = (0.0_f64, 0.0_f64);
    for index in boxes {
        let (x, y) = corners[*index];
        corners[*index] = (x - left, y - top);
        area = (area.0.max(x - left + sizes[*index].0), area.1.max(y - top + sizes[*index].1));
    }
    area
}

/// Places boxes in rows of about the same width, from the position `top` downward. This width is at least `min_width`.
/// Returns the width of the widest row, and the position of the bottom of the last row.
fn place_in_rows(sizes: &[Size], boxes: &[usize], top: f64, min_width: f64, corners: &mut [(f64, f64)]) -> Size {
    let area: f64 = boxes.iter().map(|index| (sizes[*index].0 + GAP) * (sizes[*index].1 + GAP)).sum();
    // All rows together are about 1.6 times as wide as high.
    let width = (area * 1.6).sqrt().max(min_width);
    let (mut x, mut y, mut height, mut right) = (0.0_f64, top, 0.0_f64, 0.0_f64);
    for index in boxes {
        let size = sizes[*index];
        if x > 0.0 && x + size.0 > width {
            (x, y, height) = (0.0, y + height + GAP / 2.0, 0.0);
        }
        corners[*index] = (x, y);
        x += size.0 + GAP / 2.0;
        height = height.max(size.1);
        right = right.max(corners[*index].0 + size.0);
    }
    (right, y + height)
}

/// A rendering backend of layout-rs that draws nothing. netpol reads only the positions, from the graph.
struct NoDrawing;

impl RenderBackend for NoDrawing {
    fn draw_rect(&mut self, _: Point, _: Point, _: &StyleAttr, _: Option<String>, _: Option<ClipHandle>) {}
    fn draw_line(&mut self, _: Point, _: Point, _: &StyleAttr, _: Option<String>) {}
    fn draw_circle(&mut self, _: Point, _: Point, _: &StyleAttr, _: Option<String>) {}
    fn draw_text(&mut self, _: Point, _: &str, _: &StyleAttr) {}
    fn draw_arrow(
        &mut self,
        _: &[(Point, Point)],
        _: bool,
        _: (bool, bool),
        _: &StyleAttr,
        _: Option<String>,
        _: &str,
    ) {
    }
    fn create_clip(&mut self, _: Point, _: Point, _: usize) -> ClipHandle {
        0
    }
}
