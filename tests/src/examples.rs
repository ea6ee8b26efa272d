//! Examples as scenarios.
