//! The limits on events that the eBPF programs send to the agent: at most one per second for each flow, within a budget
//! for each pod.

use netpol_common::{
    EVENT_BURST, EVENT_INTERVAL_NS, EVENT_LIMIT_WAYS, EventBudget, EventKind, EventLimit, EventLimitSet,
};

use crate::context::{Context, NodeContext};
use crate::slot::field;

/// Returns one product of the universal hash NH, from two words of data and two words of the key. Two given flows have
/// the same hash for only one key in 2³². With an unkeyed hash, or if a key were only combined with the result of such
/// a hash, a pod could send flows that take another flow's slot. Source: RFC 4418, 5.2.2: key words are added to data
/// words, two such sums are multiplied, and all products are added.
#[inline(always)]
pub(crate) fn product<S: Context>(context: &S, key_word: usize, [a, b]: [u32; 2]) -> u64 {
    let a = a.wrapping_add(context.event_key(key_word));
    let b = b.wrapping_add(context.event_key(key_word + 1));
    u64::from(a).wrapping_mul(u64::from(b))
}

/// Computes one round of a multiplicative hash. The product spreads each bit to higher bits, and the shift copies the
/// upper half to the lower half.
#[inline(always)]
pub(crate) const fn mix(bits: u64) -> u64 {
    let spread = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread ^ (spread >> 32)
}

/// A bit in the result of [`limit_event`]: an event is to be sent. The lower 32 bits are the number of packets without
/// an event since the flow's last event.
pub(crate) const REPORT: u64 = 1 << 32;

/// Decides whether a packet of the flow with this hash causes an event. `budget` is the index in `EVENT_BUDGETS` of
/// the budget that the event is charged to. A packet without an event is counted as suppressed.
///
/// Events of allowed flows have slots of their own, and are only sent while the ring buffer is at most half full. So
/// they never suppress an event of a denied packet.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "halves of the hash")]
pub(crate) fn limit_event<N: NodeContext>(node: N, hash: u64, budget: u32, kind: EventKind) -> u64 {
    let denied = matches!(kind, EventKind::Denied);
    let index = (hash >> 32) as u32;
    let Some(set) = (if denied { node.denied_event_limits(index) } else { node.allowed_event_limits(index) }) else {
        return 0;
    };
    let Some(event_budget) = node.event_budget(budget) else { return 0 };
    // An unused slot has tag 0.
    let (tag, now) = (hash as u32 | 1, node.now());
    // The slot of this flow, if it has one.
    let mut flow_slot = None;
    let ways = set.part(field!(EventLimitSet, ways));
    let mut oldest = ways.element(0);
    let mut longest = 0;
    for way in 0..EVENT_LIMIT_WAYS as usize {
        let slot = ways.element(way);
        // The time since the last event of the slot's flow, in jiffies.
        let elapsed = now.wrapping_sub(slot.read(field!(EventLimit, last_event)));
        if slot.read(field!(EventLimit, tag)) == tag {
            if elapsed < node.hz() {
                slot.add_u32(field!(EventLimit, suppressed), 1);
                return 0;
            }
            flow_slot = Some(slot);
        }
        if elapsed >= longest {
            (oldest, longest) = (slot, elapsed);
        }
    }
    let now_ns = node.boot_ns();
    let paid_until = event_budget.read(field!(EventBudget, paid_until_ns));
    // A generic cell rate algorithm, see `EventBudget::paid_until_ns`.
    let is_spent = paid_until > now_ns + EVENT_INTERVAL_NS * (EVENT_BURST - 1);
    if is_spent || (!denied && node.is_ring_half_full()) {
        // A flow without a slot does not get one now: a flood must not take the slots of flows that are within their
        // budget.
        match flow_slot {
            Some(slot) => slot.add_u32(field!(EventLimit, suppressed), 1),
            None => event_budget.add_u64(field!(EventBudget, suppressed), 1),
        }
        return 0;
    }
    if paid_until < now_ns {
        event_budget.write(field!(EventBudget, paid_until_ns), now_ns);
    }
    event_budget.add_u64(field!(EventBudget, paid_until_ns), EVENT_INTERVAL_NS);
    let slot = flow_slot.unwrap_or(oldest);
    // Reset by subtraction, and not by writing 0, because another CPU may count at the same time.
    let suppressed = slot.read(field!(EventLimit, suppressed));
    slot.add_u32(field!(EventLimit, suppressed), suppressed.wrapping_neg());
    slot.write(field!(EventLimit, last_event), now);
    if flow_slot.is_some() {
        return REPORT | u64::from(suppressed);
    }
    // The slot's previous flow may have packets that were not reported. They are counted in the budget of that flow.
    if suppressed != 0
        && let Some(previous) = node.event_budget(slot.read(field!(EventLimit, budget)))
    {
        previous.add_u64(field!(EventBudget, suppressed), u64::from(suppressed));
    }
    slot.write(field!(EventLimit, tag), tag);
    slot.write(field!(EventLimit, budget), budget);
    REPORT
}
