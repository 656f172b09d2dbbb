//! The environment of this process, as far as it may be trusted.

use std::ffi::OsString;

use super::is_set_uid;

/// A variable that is there and is not empty. As secure_getenv(3), this sees none in a program that has more rights than
/// the user who calls it: its caller chooses what the variables say.
pub(crate) fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty() && !is_set_uid());
    value.map(readable)
}

/// The home directory of the user: `HOME`, or what the system knows.
#[cfg(feature = "postgres")]
#[allow(deprecated, reason = "until Rust 1.87")]
pub(crate) fn home() -> Option<String> {
    let known = || std::env::home_dir().filter(|_| !is_set_uid());
    variable("HOME").or_else(|| known().map(|home| readable(home.into())))
}

/// What is not UTF-8 becomes a value that nobody takes, and not one that is passed over.
fn readable(value: OsString) -> String {
    value.to_string_lossy().into_owned()
}

/// Whether this variable is there and may not be trusted. For libraries that read it by themselves.
#[cfg(any(feature = "postgres-tls", feature = "etcd"))]
pub(crate) fn is_untrusted(name: &str) -> bool {
    is_set_uid() && std::env::var_os(name).is_some()
}
