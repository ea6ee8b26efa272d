//! Kernel memory that the maps use. Needs root and the BPF object (`cargo xtask ebpf`).

use netpol_tests::program::Programs;

/// Upper limit for all maps together, at their default capacities.
const LIMIT: u64 = 40 << 20;

#[test]
fn all_maps_together_use_less_than_40_mib() {
    let maps =
        Programs::load().expect("cannot load the programs").kernel_memory().expect("cannot read the maps' memory");
    let total: u64 = maps.iter().map(|(_, bytes)| bytes).sum();
    for (name, bytes) in &maps {
        println!("{name:20} {:>7} KiB", bytes >> 10);
    }
    println!("{:20} {:>7} KiB", "all", total >> 10);
    assert!(maps.len() > 15, "maps are missing: {maps:?}");
    assert!(
        maps.iter().any(|(name, bytes)| name == "FLOWS_V4" && bytes >> 10 > 500),
        "the kernel no longer reports the memory of a map in memlock: {maps:?}"
    );
    assert!(total < LIMIT, "the maps use {} KiB", total >> 10);
}
