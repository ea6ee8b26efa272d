//! netpol.
fn main() {}
