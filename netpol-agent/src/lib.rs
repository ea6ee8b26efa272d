//! The agent as a library, so that tests and benchmarks drive its parts.
