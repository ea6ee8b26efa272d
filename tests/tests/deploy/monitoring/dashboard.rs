//! Reads and checks the Grafana dashboard, deploy/monitoring/dashboard.json.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::read;

/// The dashboard. This type and the types below have only the fields that the tests use.
#[derive(Debug, Deserialize)]
pub(super) struct Dashboard {
    panels: Vec<Panel>,
    templating: Templating,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Panel {
    id: u32,
    title: String,
    grid_pos: Position,
    #[serde(default)]
    targets: Vec<Target>,
}

/// The position and the size of a panel, in cells of the dashboard's grid.
#[derive(Debug, Deserialize)]
struct Position {
    x: u32,
    y: u32,
    w: u32,
    h: u32,
}

/// A query of a panel.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    ref_id: String,
    expr: String,
}

#[derive(Debug, Deserialize)]
struct Templating {
    list: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    definition: String,
}

/// The number of columns of a dashboard's grid.
const COLUMNS: u32 = 24;

impl Dashboard {
    pub(super) fn read() -> Result<Self> {
        serde_json::from_str(&read("dashboard.json")?).context("deploy/monitoring/dashboard.json")
    }

    /// Returns the queries, with the title of their panel.
    pub(super) fn queries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.panels.iter().flat_map(|panel| panel.targets.iter().map(|target| (&*panel.title, &*target.expr)))
    }

    /// For each variable that is defined as `label_values(METRIC, LABEL)`, returns the metric and the label.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let definitions = self.templating.list.iter().map(|variable| &*variable.definition);
        definitions.filter_map(|text| text.strip_prefix("label_values(")?.strip_suffix(')')?.split_once(", "))
    }
}

#[test]
fn the_panels_of_the_dashboard_do_not_overlap() -> Result<()> {
    let dashboard = Dashboard::read()?;
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for Panel { id, title, grid_pos: Position { x, y, w, h }, targets } in &dashboard.panels {
        ensure!(ids.insert(id), "{title}: its id is used twice");
        ensure!(x + w <= COLUMNS, "{title}: wider than the dashboard");
        for cell in (*x..x + w).flat_map(|x| (*y..y + h).map(move |y| (x, y))) {
            ensure!(cells.insert(cell), "{title} overlaps another panel");
        }
        let names: BTreeSet<_> = targets.iter().map(|target| &target.ref_id).collect();
        ensure!(names.len() == targets.len(), "{title}: a refId is used twice");
    }
    Ok(())
}

#[test]
fn the_variables_of_queries_are_defined() -> Result<()> {
    let dashboard = Dashboard::read()?;
    let defined: BTreeSet<_> = dashboard.templating.list.iter().map(|variable| &*variable.name).collect();
    for (title, query) in dashboard.queries() {
        for rest in query.split('$').skip(1) {
            let name = rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().unwrap_or_default();
            // Grafana itself defines `__rate_interval`.
            ensure!(name == "__rate_interval" || defined.contains(name), "{title}: ${name} is not defined");
        }
    }
    Ok(())
}
