//! The clsact qdisc: lists the filters of the qdisc, and removes a qdisc without filters.

use std::collections::BTreeSet;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netpol_common::IfIndex;

use super::{Netlink, NetlinkError};

/// `TC_H_CLSACT`: the parent of the qdisc. Source: `include/uapi/linux/pkt_sched.h`.
const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
/// The minor numbers of the qdisc's hooks, in the order of [`Hook`]: `TC_H_MIN_INGRESS`, `TC_H_MIN_EGRESS`.
const HOOKS: [u16; 2] = [0xfff2, 0xfff3];

/// A hook of an interface at which filters run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that the interface receives.
    Ingress = 0,
    /// Packets that the interface sends.
    Egress = 1,
}

/// A BPF program that is attached as a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfFilter {
    /// The filter's name, usually that of the program; `None` if it has none.
    pub name: Option<String>,
    /// The program's id.
    pub program: u32,
    /// Filters with lower values run first.
    pub priority: u32,
}

impl Netlink {
    /// Removes the clsact qdisc of an interface unless the qdisc has filters. Returns whether the qdisc was removed. A
    /// missing qdisc is not an error.
    ///
    /// # Errors
    /// If the kernel rejects the request.
    pub fn delete_clsact_if_empty(&mut self, ifindex: IfIndex) -> Result<bool, NetlinkError> {
        let Ok(index) = i32::try_from(ifindex.0) else { return Ok(false) };
        let mut filters = 0_usize;
        self.for_each_filter(index, |_| filters += 1)?;
        if filters > 0 {
            return Ok(false);
        }
        let mut request = TcMessage::with_index(index);
        request.header.parent = CLSACT;
        request.header.handle = TcHandle { major: 0xffff, minor: 0 };
        let message = RouteNetlinkMessage::DelQueueDiscipline(request);
        match self.send_request("remove a clsact qdisc", NLM_F_REQUEST | NLM_F_ACK, message, |_| {}) {
            // The interface has no clsact qdisc now. The error is `EINVAL` ("Invalid handle") if the interface had one
            // earlier, otherwise `ENOENT`. Source: `__tc_get_qdisc` in `net/sched/sch_api.c`.
            Err(NetlinkError::Io { source, .. })
                if [Some(libc::ENOENT), Some(libc::EINVAL)].contains(&source.raw_os_error()) =>
            {
                Ok(false)
            }
            result => result.map(|_| true),
        }
    }

    /// Returns the ids of the BPF programs attached as clsact filters of an interface.
    ///
    /// # Errors
    /// If filters cannot be listed.
    pub fn filter_programs(&mut self, ifindex: IfIndex) -> Result<Vec<u32>, NetlinkError> {
        Ok(self.bpf_filters(ifindex)?.into_iter().map(|filter| filter.program).collect())
    }

    /// Returns the BPF programs attached as clsact filters of an interface.
    ///
    /// # Errors
    /// If filters cannot be listed.
    pub fn bpf_filters(&mut self, ifindex: IfIndex) -> Result<Vec<BpfFilter>, NetlinkError> {
        let Ok(index) = i32::try_from(ifindex.0) else { return Ok(Vec::new()) };
        let mut filters = Vec::new();
        self.for_each_filter(index, |message| {
            // The upper half of `info` is the priority. Source: `TC_H_MAJ(tcm_info)`, `net/sched/cls_api.c`.
            let (mut name, mut program, priority) = (None, None, message.header.info >> 16);
            for attribute in message.attributes {
                let TcAttribute::Options(options) = attribute else { continue };
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(id),
                        TcOption::Bpf(TcFilterBpfOption::ProgName(value)) => name = Some(value),
                        _ => {}
                    }
                }
            }
            filters.extend(program.map(|program| BpfFilter { name, program, priority }));
        })?;
        Ok(filters)
    }

    /// Returns whether each of these hooks of an interface has a filter with this priority and handle (the number of
    /// the filter).
    ///
    /// # Errors
    /// If filters cannot be listed.
    pub fn has_filters(
        &mut self,
        ifindex: IfIndex,
        hooks: &[Hook],
        priority: u16,
        handle: u16,
    ) -> Result<bool, NetlinkError> {
        let Ok(index) = i32::try_from(ifindex.0) else { return Ok(false) };
        let mut found = BTreeSet::new();
        self.for_each_filter(index, |filter| {
            // The upper half of `info` is the priority. Source: `TC_H_MAJ(tcm_info)`, `net/sched/cls_api.c`.
            if filter.header.info >> 16 == u32::from(priority) && filter.header.handle.minor == handle {
                found.insert(filter.header.parent.minor);
            }
        })?;
        Ok(hooks.iter().all(|hook| found.contains(&HOOKS[*hook as usize])))
    }

    /// Calls `each` for each clsact filter of an interface. Without a clsact qdisc, there are no filters.
    fn for_each_filter(&mut self, index: i32, mut each: impl FnMut(TcMessage)) -> Result<(), NetlinkError> {
        for minor in HOOKS {
            let mut request = TcMessage::with_index(index);
            request.header.parent = TcHandle { major: 0xffff, minor };
            let message = RouteNetlinkMessage::GetTrafficFilter(request);
            self.send_request("list filters", NLM_F_DUMP | NLM_F_REQUEST, message, |reply| {
                if let RouteNetlinkMessage::NewTrafficFilter(filter) = reply {
                    each(filter);
                }
            })?;
        }
        Ok(())
    }
}
