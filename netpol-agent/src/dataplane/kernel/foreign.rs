//! Other people's programs at the hooks where netpol's are.

use aya::programs::SchedClassifier;
use netpol_common::IfIndex;

use super::attach::pinned_link;
use super::pins::Pins;
use super::program::{Program, Role};
use super::query::tcx_programs;
use crate::endpoints::Netlink;

/// When somebody else's program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Before netpol's, which it can keep packets from.
    Before,
    /// After netpol's, or where there is none of netpol's.
    After,
}

/// A program of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    /// Its name, or its id where the kernel does not tell the name.
    pub name: String,
    /// When it runs.
    pub order: Order,
}

/// Tells them apart from netpol's own.
#[derive(Clone, Debug)]
pub struct ForeignPrograms {
    pub(super) pins: Pins,
    /// The ids of this agent's programs.
    pub(super) own: Vec<u32>,
}

impl ForeignPrograms {
    /// Those on an interface. One that has just gone has none.
    pub fn on(&self, netlink: &mut Netlink, ifindex: IfIndex, name: &str) -> Vec<ForeignProgram> {
        let mut foreign = Vec::new();
        for program in Role::Pod.programs() {
            self.by_tcx(ifindex, name, *program, &mut foreign);
        }
        self.by_filters(netlink, ifindex, &mut foreign);
        foreign
    }

    fn by_tcx(&self, ifindex: IfIndex, name: &str, program: Program, foreign: &mut Vec<ForeignProgram>) {
        // Before Linux 6.6 there is nothing to ask.
        let ids = tcx_programs(ifindex, program.hook()).unwrap_or_default();
        if ids.iter().all(|id| self.own.contains(id)) {
            return;
        }
        // An earlier agent's stay where this one's cannot be put.
        let pinned = pinned_link(&self.pins.link(ifindex, program)).ok().flatten();
        let pinned = pinned.and_then(|link| link.info().ok()).map(|info| info.program_id());
        // Takes CAP_SYS_ADMIN, which the agent need not have.
        let names = SchedClassifier::query_tcx(name, program.hook()).map(|(_, programs)| programs).unwrap_or_default();
        let named = |id: u32| names.iter().find(|program| program.id() == id)?.name_as_str().map(str::to_owned);
        let is_own =
            |id: &u32| self.own.contains(id) || pinned == Some(*id) || named(*id).is_some_and(|name| is_ours(&name));
        // Where netpol's are clsact filters, they come after all of these.
        let own = ids.iter().position(is_own).unwrap_or(if self.has_filter(ifindex) { ids.len() } else { 0 });
        foreign.extend(ids.iter().enumerate().filter(|(_, id)| !is_own(id)).map(|(position, id)| ForeignProgram {
            name: named(*id).filter(|name| !name.is_empty()).unwrap_or_else(|| format!("with the id {id}")),
            order: if position < own { Order::Before } else { Order::After },
        }));
    }

    fn by_filters(&self, netlink: &mut Netlink, ifindex: IfIndex, foreign: &mut Vec<ForeignProgram>) {
        let filters = netlink.bpf_filters(ifindex).unwrap_or_default();
        let own = filters.iter().filter(|filter| is_ours(&filter.name)).map(|filter| filter.priority).min();
        for filter in filters.into_iter().filter(|filter| !is_ours(&filter.name) && !self.own.contains(&filter.program))
        {
            let before = own.is_some_and(|own| filter.priority < own);
            foreign
                .push(ForeignProgram { name: filter.name, order: if before { Order::Before } else { Order::After } });
        }
    }

    fn has_filter(&self, ifindex: IfIndex) -> bool {
        self.pins.filter(ifindex).exists()
    }
}

pub(super) fn is_ours(name: &str) -> bool {
    // Kernels keep 15 bytes of a name. Source: `BPF_OBJ_NAME_LEN`.
    Program::ALL.into_iter().map(Program::name).any(|own| own == name || own.get(..15) == Some(name))
}
