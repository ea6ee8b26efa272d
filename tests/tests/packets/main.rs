//! Tests that run hand-made frames through the loaded programs and through the same code in memory, and compare the
//! verdicts. They need root and the BPF object (`cargo xtask ebpf`).

mod flows;
mod headers;
mod identity;
mod kernel_and_memory;
mod neighbors;
mod program_size;
mod services;
mod shadow;
