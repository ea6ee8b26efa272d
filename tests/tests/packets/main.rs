//! Hand-made frames through the loaded programs and through the same engine in memory: what each is worth, and that both
//! agree. Needs root and the BPF object (`cargo xtask ebpf`).

mod both;
mod flows;
mod headers;
mod identity;
mod neighbors;
mod services;
mod surroundings;
