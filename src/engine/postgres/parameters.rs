//! The parameters that a URL may have. They are known also where this engine is not built in.

pub(crate) const NAMES: &[&str] = &[
    "lock",
    "key",
    "ttl",
    "sslmode",
    "sslrootcert",
    "channel_binding",
    "require_auth",
    "connect_timeout",
    "target_session_attrs",
    "application_name",
    "fence",
];
