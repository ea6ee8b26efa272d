//! Positions of boxes: layers by layout-rs for boxes with edges, rows for all others.

use layout::core::base::Orientation;
use layout::core::format::{ClipHandle, RenderBackend};
use layout::core::geometry::Point;
use layout::core::style::StyleAttr;
use layout::std_shapes::shapes::{Arrow, Element, ShapeKind};
use layout::topo::layout::VisualGraph;

/// The distance between boxes.
const GAP: f64 = 40.0;
/// The number of edges to each box that the layout uses: its time grows fast with their number.
const EDGES: usize = 2;
/// The number of boxes with edges that are laid out in layers.
const MAX_BOXES: usize = 150;

/// Width and height.
pub(super) type Size = (f64, f64);

/// The top left corners of boxes, and the size of all of them.
pub(super) struct Placed {
    pub(super) corners: Vec<(f64, f64)>,
    pub(super) size: Size,
}

/// Places boxes so that most edges lead to the right.
pub(super) fn place(sizes: &[Size], edges: &[(usize, usize)]) -> Placed {
    let mut used = vec![0_usize; sizes.len()];
    let mut chosen = Vec::new();
    for (from, to) in edges {
        if from != to && used[*to] < EDGES && !chosen.contains(&(*from, *to)) && !chosen.contains(&(*to, *from)) {
            used[*to] += 1;
            chosen.push((*from, *to));
        }
    }
    let has_edge = |index: usize| chosen.iter().any(|(from, to)| *from == index || *to == index);
    let connected: Vec<usize> = (0..sizes.len()).filter(|index| has_edge(*index)).take(MAX_BOXES).collect();
    let mut corners = vec![(0.0, 0.0); sizes.len()];
    let layered = layers(sizes, &connected, &chosen, &mut corners);
    let others: Vec<usize> = (0..sizes.len()).filter(|index| !connected.contains(index)).collect();
    let top = if connected.is_empty() || others.is_empty() { layered.1 } else { layered.1 + GAP };
    let rows = rows(sizes, &others, top, layered.0, &mut corners);
    Placed { corners, size: (layered.0.max(rows.0), layered.1.max(rows.1)) }
}

/// Places boxes in layers. Returns their size.
fn layers(sizes: &[Size], boxes: &[usize], edges: &[(usize, usize)], corners: &mut [(f64, f64)]) -> Size {
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
    graph.do_it(false, true, false, &mut Nothing);
    let top_left = |handle| graph.pos(handle).center();
    let corner = |index: usize, center: Point| (center.x - sizes[index].0 / 2.0, center.y - sizes[index].1 / 2.0);
    for (index, handle) in boxes.iter().zip(&handles) {
        corners[*index] = corner(*index, top_left(*handle));
    }
    let least = |of: fn(&(f64, f64)) -> f64| boxes.iter().map(|index| of(&corners[*index])).fold(f64::MAX, f64::min);
    let (left, top) = (least(|corner| corner.0), least(|corner| corner.1));
    let mut all = (0.0_f64, 0.0_f64);
    for index in boxes {
        let (x, y) = corners[*index];
        corners[*index] = (x - left, y - top);
        all = (all.0.max(x - left + sizes[*index].0), all.1.max(y - top + sizes[*index].1));
    }
    all
}

/// Places boxes in rows of about the same width. Returns the size of everything above and in the rows.
fn rows(sizes: &[Size], boxes: &[usize], top: f64, width: f64, corners: &mut [(f64, f64)]) -> Size {
    let area: f64 = boxes.iter().map(|index| (sizes[*index].0 + GAP) * (sizes[*index].1 + GAP)).sum();
    let width = (area * 1.6).sqrt().max(width);
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

/// The positions are read from the graph, so nothing is drawn.
struct Nothing;

impl RenderBackend for Nothing {
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
