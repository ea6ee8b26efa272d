//! What the maps take from the kernel's memory. Needs root and the BPF object (`cargo xtask ebpf`).

use netpol_tests::program::Programs;

/// Of all maps together, at the capacities they have unless told otherwise.
const MOST: u64 = 40 << 20;

#[test]
fn all_maps_take_less_than_40_mib() {
    let maps = Programs::load().expect("the programs load").kernel_memory().expect("the kernel tells");
    let total: u64 = maps.iter().map(|(_, bytes)| bytes).sum();
    for (name, bytes) in &maps {
        println!("{name:20} {:>7} KiB", bytes >> 10);
    }
    println!("{:20} {:>7} KiB", "all", total >> 10);
    assert!(maps.len() > 15, "not all maps are there: {maps:?}");
    assert!(
        maps.iter().any(|(name, bytes)| name == "FLOWS_V4" && bytes >> 10 > 500),
        "memlock no longer tells: {maps:?}"
    );
    assert!(total < MOST, "the maps take {} KiB", total >> 10);
}
