//! netpol-agent.
fn main() {}
