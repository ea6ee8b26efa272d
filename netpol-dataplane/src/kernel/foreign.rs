//! Finds other software's programs at the hooks of netpol's programs. A program is attached by TCX (Linux 6.6 and
//! newer) or as a filter of the clsact qdisc. At each hook, TCX programs run before filters.

use aya::programs::SchedClassifier;
use netpol_common::IfIndex;

use super::attach::pinned_link;
use super::pins::Pins;
use super::program::{Program, Role};
use super::query::tcx_programs;
use netpol_node::{BpfFilter, Netlink};

/// Whether another program runs before or after netpol's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Before netpol's, so it can prevent packets from reaching netpol's.
    Before,
    /// After netpol's, or netpol has no program at this hook.
    After,
}

/// A program of other software.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    /// Its name, or its id if the name is unknown.
    pub name: String,
    /// When it runs.
    pub order: Order,
}

/// Distinguishes other programs from netpol's.
#[derive(Clone, Debug)]
pub struct ForeignPrograms {
    pub(super) pins: Pins,
    /// The ids of this agent's programs.
    pub(super) own: Vec<u32>,
}

impl ForeignPrograms {
    /// Returns other software's programs on an interface. An interface that was just removed has none.
    pub fn programs_on(&self, netlink: &mut Netlink, ifindex: IfIndex, name: &str) -> Vec<ForeignProgram> {
        let mut foreign = Vec::new();
        for program in Role::Pod.programs() {
            self.add_tcx_programs(ifindex, name, *program, &mut foreign);
        }
        self.add_filters(netlink, ifindex, &mut foreign);
        foreign
    }

    /// Adds other software's TCX programs at the hook of `program`.
    fn add_tcx_programs(&self, ifindex: IfIndex, name: &str, program: Program, foreign: &mut Vec<ForeignProgram>) {
        // Linux before 6.6 has no TCX.
        let ids = tcx_programs(ifindex, program.hook()).unwrap_or_default();
        if ids.iter().all(|id| self.own.contains(id)) {
            return;
        }
        // The pinned program is netpol's, too: an earlier agent's program stays if this agent's cannot be attached.
        let pinned = pinned_link(&self.pins.link(ifindex, program)).ok().flatten();
        let pinned = pinned.and_then(|link| link.info().ok()).map(|info| info.program_id());
        // Reading names needs CAP_SYS_ADMIN. If the agent does not have it, `names` is empty.
        let names = SchedClassifier::query_tcx(name, program.hook()).map(|(_, programs)| programs).unwrap_or_default();
        let named = |id: u32| names.iter().find(|program| program.id() == id)?.name_as_str().map(str::to_owned);
        let is_own = |id: &u32| {
            self.own.contains(id) || pinned == Some(*id) || named(*id).is_some_and(|name| is_own_name(&name))
        };
        // If netpol's programs are clsact filters, they run after all TCX programs.
        let own_position = ids.iter().position(is_own).unwrap_or(if self.has_filter(ifindex) { ids.len() } else { 0 });
        foreign.extend(ids.iter().enumerate().filter(|(_, id)| !is_own(id)).map(|(position, id)| ForeignProgram {
            name: named(*id).filter(|name| !name.is_empty()).unwrap_or_else(|| name_by_id(*id)),
            order: if position < own_position { Order::Before } else { Order::After },
        }));
    }

    /// Adds other software's clsact filters of an interface.
    fn add_filters(&self, netlink: &mut Netlink, ifindex: IfIndex, foreign: &mut Vec<ForeignProgram>) {
        let filters = netlink.bpf_filters(ifindex).unwrap_or_default();
        let is_own = |filter: &BpfFilter| has_own_name(filter) || self.own.contains(&filter.program);
        let own_priority = filters.iter().filter(|filter| is_own(filter)).map(|filter| filter.priority).min();
        for filter in filters.into_iter().filter(|filter| !is_own(filter)) {
            let before = own_priority.is_some_and(|own_priority| filter.priority < own_priority);
            foreign.push(ForeignProgram {
                name: filter.name.unwrap_or_else(|| name_by_id(filter.program)),
                order: if before { Order::Before } else { Order::After },
            });
        }
    }

    /// Returns whether netpol's programs are clsact filters on this interface.
    fn has_filter(&self, ifindex: IfIndex) -> bool {
        self.pins.filter_dir(ifindex).exists()
    }
}

/// Returns what follows "TC program" in a message about a program without a known name.
fn name_by_id(id: u32) -> String {
    format!("with id {id}")
}

/// Returns whether a filter has the name of a netpol program.
pub(super) fn has_own_name(filter: &BpfFilter) -> bool {
    filter.name.as_deref().is_some_and(is_own_name)
}

fn is_own_name(name: &str) -> bool {
    // The kernel stores 15 bytes of a name. Source: `BPF_OBJ_NAME_LEN`.
    Program::ALL.into_iter().map(Program::name).any(|own| own == name || own.get(..15) == Some(name))
}
