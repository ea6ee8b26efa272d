//! Removes a clsact qdisc, where nobody uses it any more.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netpol_common::IfIndex;

use super::{Netlink, NetlinkError};

/// `TC_H_CLSACT` as the parent of the qdisc, and the minors of its hooks. Source: `include/uapi/linux/pkt_sched.h`.
const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
const HOOKS: [u16; 2] = [0xfff2, 0xfff3];

impl Netlink {
    /// Removes the clsact qdisc of an interface unless it holds filters. Tells whether it did; none is fine.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn delete_clsact_if_empty(&mut self, ifindex: IfIndex) -> Result<bool, NetlinkError> {
        let Ok(index) = i32::try_from(ifindex.0) else { return Ok(false) };
        for minor in HOOKS {
            let mut request = TcMessage::with_index(index);
            request.header.parent = TcHandle { major: 0xffff, minor };
            let mut filters = 0_usize;
            self.ask(
                "list filters",
                NLM_F_DUMP | NLM_F_REQUEST,
                RouteNetlinkMessage::GetTrafficFilter(request),
                |_| {
                    filters += 1;
                },
            )?;
            if filters > 0 {
                return Ok(false);
            }
        }
        let mut request = TcMessage::with_index(index);
        request.header.parent = CLSACT;
        request.header.handle = TcHandle { major: 0xffff, minor: 0 };
        let message = RouteNetlinkMessage::DelQueueDiscipline(request);
        self.ask("remove a clsact qdisc", NLM_F_REQUEST | NLM_F_ACK, message, |_| {})?;
        Ok(true)
    }
}
