//! The verdict as the standard is written, read naively over the objects. Shares no code with [`crate::compile`].
