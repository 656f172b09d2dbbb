//! What must hold for arbitrary input: bytes in a lock file, URLs, paths and passwords.
#![cfg(unix)]

mod fuzz;
mod passwords;
