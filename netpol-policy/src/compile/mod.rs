//! The incremental compiler: one event in, the writes it takes out.
