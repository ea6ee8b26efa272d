//! `netpol endpoints`: lists the pod interfaces on all nodes. The module `policies` has `netpol policies`.

mod policies;

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::Result;
use netpol_api::{Endpoint, List, PodStatus};

use crate::Exit;
use crate::args::{ListOptions, Output};
use crate::color::ColorMode;
use crate::columns::{TextCell, TextTable, Tone, some_of, table_width, text};
use crate::output::{NodeItem, print_items};
use crate::remote::{Answer, Fleet, runtime};
use crate::scope::Scope;

pub(crate) use policies::run as policies;

/// The maximum number of policies or addresses in a cell.
const SHOWN: usize = 2;

pub(crate) fn endpoints(options: &ListOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(list_endpoints(options, out))
}

async fn list_endpoints(options: &ListOptions, out: &mut impl Write) -> Result<Exit> {
    let mut fleet = Fleet::find(&options.agents).await?;
    let scope = Scope::new(&options.scope, &fleet)?;
    let answers: Vec<Answer<List<Endpoint>>> = fleet.get("/v1/endpoints").await;
    let selected = pods_with_labels(&scope, &mut fleet).await;
    let is_shown = |endpoint: &&Endpoint| match &endpoint.pod {
        Some(pod) => {
            pod.split_once('/').is_none_or(|(namespace, _)| scope.has_namespace(namespace))
                && selected.as_ref().is_none_or(|selected| selected.contains(pod))
        }
        // The namespace and labels of an unknown pod are not known.
        None => scope.namespace.is_none() && selected.is_none(),
    };
    let items: Vec<NodeItem<'_, Endpoint>> = answers
        .iter()
        .flat_map(|answer| {
            let node = answer.content.node.as_str();
            answer.content.items.iter().filter(is_shown).map(move |item| NodeItem { node, item })
        })
        .collect();
    match options.output {
        Output::Json => print_items(out, &items, fleet.failures())?,
        Output::Table if answers.is_empty() => {}
        Output::Table => print_endpoints(out, &items, &scope, table_width(), ColorMode::detect())?,
    }
    fleet.finish(answers.len())
}

/// Returns the pods that the label selector of `-l` matches, as `namespace/name`; `None` without `-l`.
async fn pods_with_labels(scope: &Scope, fleet: &mut Fleet) -> Option<BTreeSet<String>> {
    scope.labels.as_ref()?;
    let answers: Vec<Answer<List<PodStatus>>> = fleet.get("/v1/pods").await;
    let pods = answers.into_iter().flat_map(|answer| answer.content.items);
    let with_labels = pods.filter(|pod| scope.has_labels(&pod.labels));
    Some(with_labels.map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect())
}

fn print_endpoints(
    out: &mut impl Write,
    items: &[NodeItem<'_, Endpoint>],
    scope: &Scope,
    width: Option<usize>,
    color: ColorMode,
) -> Result<()> {
    if items.is_empty() {
        writeln!(out, "no endpoints{}", scope.describe())?;
        return Ok(());
    }
    // If the terminal is too narrow, the optional columns are omitted, those with the highest numbers first.
    let mut table = TextTable::new(&[
        text("POD"),
        text("NODE").optional(2),
        text("INTERFACE").optional(4),
        text("ADDRESS").optional(3),
        text("INGRESS"),
        text("EGRESS"),
        text("STATE").optional(1),
    ]);
    let mut items: Vec<&NodeItem<'_, Endpoint>> = items.iter().collect();
    items.sort_by_key(|of_node| (&of_node.item.pod, of_node.node));
    for NodeItem { node, item: endpoint } in items {
        let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
        let isolated_by = |policies: &[String]| {
            if policies.is_empty() { "not isolated".to_owned() } else { some_of(policies, SHOWN) }
        };
        table.add_row([
            endpoint.pod.as_deref().unwrap_or("-").into(),
            node.into(),
            (&endpoint.interface).into(),
            some_of(&addresses, SHOWN).into(),
            isolated_by(&endpoint.policies.ingress).into(),
            isolated_by(&endpoint.policies.egress).into(),
            state_cell(endpoint),
        ]);
    }
    table.print(out, width, color)?;
    Ok(())
}

fn state_cell(endpoint: &Endpoint) -> TextCell {
    match endpoint {
        Endpoint { conflict: Some(_), .. } => TextCell::toned("conflict", Some(Tone::Bad)),
        Endpoint { attached: false, .. } => TextCell::toned("not attached", Some(Tone::Bad)),
        Endpoint { orphaned: true, .. } => TextCell::toned("orphaned", Some(Tone::Notice)),
        Endpoint { unlisted_addresses, .. } if !unlisted_addresses.is_empty() => {
            TextCell::toned("unlisted address", Some(Tone::Notice))
        }
        _ => TextCell::toned("attached", Some(Tone::Good)),
    }
}
