//! The programs on the pods' veths.
