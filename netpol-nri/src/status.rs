//! The statuses of responses that report an error.

use crate::messages::Status;

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 1024;

// Values of google.rpc.Code.
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;

impl Status {
    /// Returns the status for a start (of a pod or container) that the handler refused or did not allow in time. Errors
    /// of plugins that use NRI's own library have the same code.
    pub(crate) fn refused(message: &str) -> Self {
        Self::new(UNKNOWN, message)
    }

    pub(crate) fn invalid(message: &str) -> Self {
        Self::new(INVALID_ARGUMENT, message)
    }

    pub(crate) fn unimplemented(message: &str) -> Self {
        Self::new(UNIMPLEMENTED, message)
    }

    pub(crate) fn internal(message: &str) -> Self {
        Self::new(INTERNAL, message)
    }

    fn new(code: i32, message: &str) -> Self {
        Self { code, message: message[..message.floor_char_boundary(MAX_MESSAGE)].to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(Status::refused("short").message, "short");
        assert_eq!(Status::refused(&"é".repeat(1000)).message, "é".repeat(512));
        assert_eq!(Status::refused(&format!("a{}", "é".repeat(1000))).message.len(), 1023);
    }
}
