//! The clsact qdisc: who uses it, and its removal where nobody does any more.

use std::collections::BTreeSet;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netpol_common::IfIndex;

use super::{Netlink, NetlinkError};

/// `TC_H_CLSACT` as the parent of the qdisc, and the minors of its hooks. Source: `include/uapi/linux/pkt_sched.h`.
const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
const HOOKS: [u16; 2] = [0xfff2, 0xfff3];

/// Where filters run: what comes in by the interface, or what leaves by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What comes in.
    Ingress = 0,
    /// What leaves.
    Egress = 1,
}

/// A BPF program that runs as a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfFilter {
    /// The name it was given, most often the program's.
    pub name: String,
    /// The program's id.
    pub program: u32,
    /// Lower ones run first.
    pub priority: u32,
}

impl Netlink {
    /// Removes the clsact qdisc of an interface unless it holds filters. Tells whether it did; none is fine.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn delete_clsact_if_empty(&mut self, ifindex: IfIndex) -> Result<bool, NetlinkError> {
        let Ok(index) = i32::try_from(ifindex.0) else { return Ok(false) };
        let mut filters = 0_usize;
        self.filters(index, |_| filters += 1)?;
        if filters > 0 {
            return Ok(false);
        }
        let mut request = TcMessage::with_index(index);
        request.header.parent = CLSACT;
        request.header.handle = TcHandle { major: 0xffff, minor: 0 };
        let message = RouteNetlinkMessage::DelQueueDiscipline(request);
        self.ask("remove a clsact qdisc", NLM_F_REQUEST | NLM_F_ACK, message, |_| {})?;
        Ok(true)
    }

    /// The ids of the BPF programs that run as clsact filters of an interface.
    ///
    /// # Errors
    /// Where filters cannot be listed.
    pub fn filter_programs(&mut self, ifindex: IfIndex) -> Result<Vec<u32>, NetlinkError> {
        Ok(self.bpf_filters(ifindex)?.into_iter().map(|filter| filter.program).collect())
    }

    /// The BPF programs that run as clsact filters of an interface.
    ///
    /// # Errors
    /// Where filters cannot be listed.
    pub fn bpf_filters(&mut self, ifindex: IfIndex) -> Result<Vec<BpfFilter>, NetlinkError> {
        let Ok(index) = i32::try_from(ifindex.0) else { return Ok(Vec::new()) };
        let mut filters = Vec::new();
        self.filters(index, |message| {
            // The priority is the upper half. Source: `TC_H_MAJ(tcm_info)`, `net/sched/cls_api.c`.
            let (mut name, mut program, priority) = (None, None, message.header.info >> 16);
            for attribute in message.attributes {
                let TcAttribute::Options(options) = attribute else { continue };
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(id),
                        TcOption::Bpf(TcFilterBpfOption::ProgName(own)) => name = Some(own),
                        _ => {}
                    }
                }
            }
            filters.extend(program.map(|program| {
                let name = name.unwrap_or_else(|| format!("with the id {program}"));
                BpfFilter { name, program, priority }
            }));
        })?;
        Ok(filters)
    }

    /// Whether these hooks of an interface have a filter of this priority and handle.
    ///
    /// # Errors
    /// Where filters cannot be listed.
    pub fn has_filters(
        &mut self,
        ifindex: IfIndex,
        hooks: &[Hook],
        priority: u16,
        handle: u16,
    ) -> Result<bool, NetlinkError> {
        let Ok(index) = i32::try_from(ifindex.0) else { return Ok(false) };
        let mut found = BTreeSet::new();
        self.filters(index, |filter| {
            // The priority is the upper half. Source: `TC_H_MAJ(tcm_info)`, `net/sched/cls_api.c`.
            if filter.header.info >> 16 == u32::from(priority) && filter.header.handle.minor == handle {
                found.insert(filter.header.parent.minor);
            }
        })?;
        Ok(hooks.iter().all(|hook| found.contains(&HOOKS[*hook as usize])))
    }

    fn filters(&mut self, index: i32, mut each: impl FnMut(TcMessage)) -> Result<(), NetlinkError> {
        for minor in HOOKS {
            let mut request = TcMessage::with_index(index);
            request.header.parent = TcHandle { major: 0xffff, minor };
            let message = RouteNetlinkMessage::GetTrafficFilter(request);
            self.ask("list filters", NLM_F_DUMP | NLM_F_REQUEST, message, |answer| {
                if let RouteNetlinkMessage::NewTrafficFilter(filter) = answer {
                    each(filter);
                }
            })?;
        }
        Ok(())
    }
}
