//! An sk_buff at a TC hook, with the BPF maps.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_skb_load_bytes};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, Direction, Endpoint, EventBudget, EventLimitSet, FlowEntry, FlowEvent, FlowKey,
    FragmentEntry, FragmentKey, FrontendEntry, FrontendKey, IfIndex, NeighborBudget, PortEntry, PortKey, RECHECK,
    Reason, Tables,
};

use super::globals;
use super::maps::{
    addresses, allow, counters, endpoint_ids, endpoints, event_limits, events, flows, fragments, neighbors, ports,
    prefixes, services, settings, tunnels,
};
use crate::context::{Context, Family, NodeContext};
use crate::slot::Slot;
use crate::window::{Bytes, Window};

/// Values of `skb->pkt_type` by the frame's Ethernet destination. Source: `include/uapi/linux/if_packet.h`.
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;

/// A packet in the kernel.
///
/// `skb->tc_index` has 16 bits. It contains the source endpoint ID, which identifies the sending pod, and the bit
/// [`RECHECK`](netpol_common::RECHECK), which means that the packet has to be evaluated again post-DNAT. `tc_index`
/// stays with the packet through bridging, routing and address translation, and is copied to clones and fragments. In
/// the kernel, only a few schedulers use it: `gred`, and before Linux 6.3 `dsmark` and `tcindex`. Other programs on the
/// same hooks must not return `TC_ACT_OK`, which overwrites `tc_index`. Source: `tcf_classify` in
/// <https://github.com/torvalds/linux/blob/v6.12/net/core/dev.c>.
#[derive(Clone, Copy)]
pub(super) struct Skb {
    skb: *mut __sk_buff,
    /// One of [`hook`]. This is a number, not a type parameter: global BPF functions receive it as an argument, and the
    /// verifier checks each of these functions only once for all hooks.
    hook: u32,
}

/// The hook at which a packet is.
pub(super) mod hook {
    /// At the veth of the receiving pod.
    pub(crate) const INGRESS: u32 = 0;
    /// At the veth of the sending pod.
    pub(crate) const EGRESS: u32 = 1;
    /// Post-DNAT: at the device or the veth to which a packet from a pod goes. The sender's egress policy is evaluated.
    pub(crate) const POST_DNAT: u32 = 2;
    /// Like `POST_DNAT`, at a device without link headers.
    pub(crate) const POST_DNAT_L3: u32 = 3;
}

impl Skb {
    /// Creates the packet for which a program runs, at one of the hooks in [`hook`].
    ///
    /// # Safety
    /// The pointer must be the running program's context.
    #[inline(always)]
    pub(super) const unsafe fn new(skb: *mut __sk_buff, hook: u32) -> Self {
        Self { skb, hook }
    }

    #[inline(always)]
    pub(super) const fn hook(self) -> u32 {
        self.hook
    }

    /// Returns whether the packet has to be rechecked post-DNAT.
    #[inline(always)]
    pub(super) fn needs_recheck(self) -> bool {
        self.tc_index() & RECHECK != 0
    }

    /// Returns the program's context, the kernel's `__sk_buff`.
    #[inline(always)]
    pub(super) const fn context(self) -> *mut __sk_buff {
        self.skb
    }

    /// Reads a field of the `__sk_buff`.
    #[inline(always)]
    fn field<T>(self, field: impl FnOnce(&__sk_buff) -> T) -> T {
        // SAFETY: `new` requires the running program's context, which is valid while the program runs.
        field(unsafe { &*self.skb })
    }
}

/// Access to the clocks and maps of this node, for functions that receive no packet.
#[derive(Clone, Copy)]
pub(super) struct Node;

/// Types with access to the clocks and maps of this node.
trait OnNode: Copy {}
impl OnNode for Node {}
impl OnNode for Skb {}

impl<T: OnNode> NodeContext for T {
    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: has no arguments and always succeeds.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn hz(&self) -> u32 {
        globals::hz()
    }

    #[inline(always)]
    fn boot_ns(&self) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn denied_event_limits(&self, index: u32) -> Option<Slot<'_, EventLimitSet>> {
        // SAFETY: array values live as long as the map, and are accessed only through `Slot`.
        event_limits::denied(index).map(|set| unsafe { Slot::new(set) })
    }

    #[inline(always)]
    fn allowed_event_limits(&self, index: u32) -> Option<Slot<'_, EventLimitSet>> {
        // SAFETY: as above.
        event_limits::allowed(index).map(|set| unsafe { Slot::new(set) })
    }

    #[inline(always)]
    fn is_ring_half_full(&self) -> bool {
        events::is_half_full()
    }

    #[inline(always)]
    fn event_budget(&self, index: u32) -> Option<Slot<'_, EventBudget>> {
        // SAFETY: as above.
        event_limits::budget(index).map(|budget| unsafe { Slot::new(budget) })
    }
}

impl Context for Skb {
    #[inline(always)]
    fn window<const N: usize>(&self) -> Option<Window<'_, N>> {
        let (start, end) = self.field(|skb| (skb.data as usize, skb.data_end as usize));
        if start + N > end {
            return None;
        }
        // SAFETY: the linear part has `N` bytes; the verifier checks the same.
        Some(unsafe { Window::at(start as *const u8) })
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        let mut bytes = core::mem::MaybeUninit::<Bytes<N>>::uninit();
        // SAFETY: the helper writes `N` bytes, or fails.
        let status = unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
        // SAFETY: on success all bytes are written; on failure the helper fills them with zeros.
        (status == 0).then(|| unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.field(|skb| skb.len)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        if self.is_post_dnat() { endpoint_ids::get(self.source_endpoint()).0 } else { self.field(|skb| skb.ifindex) }
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        self.field(|skb| skb.ingress_ifindex)
    }

    #[inline(always)]
    fn tc_index(&self) -> u32 {
        self.field(|skb| skb.tc_index)
    }

    #[inline(always)]
    fn set_tc_index(&self, word: u32) {
        // SAFETY: as in `field`. The write is volatile, so that the whole word is written.
        unsafe { (&raw mut (*self.skb).tc_index).write_volatile(word) };
    }

    #[inline(always)]
    fn l3_type(&self) -> Option<u16> {
        (self.hook == hook::POST_DNAT_L3).then(|| u16::from_be(self.field(|skb| skb.protocol) as u16))
    }

    #[inline(always)]
    fn is_post_dnat(&self) -> bool {
        self.hook >= hook::POST_DNAT
    }

    #[inline(always)]
    fn endpoint(&self) -> Option<&Endpoint> {
        let ifindex = IfIndex(self.ifindex());
        // Post-DNAT, ifindex 0 means that no endpoint has the source endpoint ID. `endpoints::get` must not be called
        // with 0: it would return an unused slot of the array `ENDPOINTS`, because unused slots have ifindex 0, too.
        if self.is_post_dnat() && ifindex == IfIndex(0) { None } else { endpoints::get(ifindex) }
    }

    #[inline(always)]
    fn endpoint_by_id(&self, id: u32) -> Option<&Endpoint> {
        let ifindex = endpoint_ids::get(id);
        if ifindex == IfIndex(0) { None } else { endpoints::get(ifindex) }
    }

    #[inline(always)]
    fn neighbor_budget(&self, endpoint: u32) -> Option<Slot<'_, NeighborBudget>> {
        // SAFETY: array values live as long as the map, and are accessed only through `Slot`.
        neighbors::slot(endpoint).map(|slot| unsafe { Slot::new(slot) })
    }

    #[inline(always)]
    fn count(&self, endpoint: u32, direction: Direction, reason: Reason) {
        counters::count(endpoint, direction, reason);
    }

    #[inline(always)]
    fn count_shadow_denied(&self, endpoint: u32, direction: Direction) {
        counters::count_shadow_denied(endpoint, direction);
    }

    #[inline(always)]
    fn records_allowed(&self) -> bool {
        settings::record_allowed()
    }

    #[inline(always)]
    fn observes(&self) -> bool {
        globals::observe() != 0
    }

    #[inline(always)]
    fn counts_traffic(&self) -> bool {
        globals::count_traffic() != 0
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        self.field(|skb| skb.gso_segs)
    }

    #[inline(always)]
    fn event_key(&self, word: usize) -> u32 {
        globals::event_key(word)
    }

    #[inline(always)]
    fn is_group(&self) -> bool {
        matches!(self.field(|skb| skb.pkt_type), PACKET_BROADCAST | PACKET_MULTICAST)
    }

    #[inline(always)]
    fn emit(&self, event: &FlowEvent) {
        if !events::emit(event) {
            counters::count_lost_event();
        }
    }
}

macro_rules! family {
    ($address:ty, $get:ident, $insert:ident) => {
        impl Family<$address> for Skb {
            #[inline(always)]
            fn flow(&self, endpoint: &Endpoint, key: &FlowKey<$address>) -> Option<Slot<'_, FlowEntry>> {
                // SAFETY: the kernel does not free the element's memory. If the kernel reuses the element for another
                // flow at the same time, only that flow's times and counters are wrong.
                flows::$get(endpoint, key).map(|slot| unsafe { Slot::new(slot) })
            }

            #[inline(always)]
            fn insert_flow(
                &self,
                endpoint: &Endpoint,
                key: &FlowKey<$address>,
                entry: &FlowEntry,
                replaces: bool,
            ) -> bool {
                flows::$insert(endpoint, key, entry, replaces)
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$address>) -> Option<FragmentEntry> {
                fragments::$get(key)
            }

            #[inline(always)]
            fn insert_fragment(&self, key: &FragmentKey<$address>, entry: &FragmentEntry) {
                fragments::$insert(key, entry);
            }
        }

        impl Tables<$address> for Skb {
            #[inline(always)]
            fn address(&self, address: &$address) -> Option<AddressEntry> {
                addresses::$get(address).or_else(|| prefixes::$get(address))
            }

            #[inline(always)]
            fn exact_address(&self, address: &$address) -> Option<AddressEntry> {
                addresses::$get(address)
            }

            #[inline(always)]
            fn prefix(&self, address: &$address) -> Option<AddressEntry> {
                prefixes::$get(address)
            }

            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$address>) -> Option<FrontendEntry> {
                services::$get(key)
            }

            #[inline(always)]
            fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
                allow::get(key)
            }

            #[inline(always)]
            fn port(&self, key: &PortKey) -> Option<PortEntry> {
                ports::get(key)
            }

            #[inline(always)]
            fn barrier(&self, value: u8) -> u8 {
                self.barrier_within::<255>(value)
            }

            #[inline(always)]
            fn tunnels(&self, index: u32) -> u64 {
                tunnels::get(index)
            }
        }
    };
}
family!([u8; 4], get_v4, insert_v4);
family!([u8; 16], get_v6, insert_v6);
