//! Lock files for inter-process communication, for Tokio.
