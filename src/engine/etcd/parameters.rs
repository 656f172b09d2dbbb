//! The parameters that a URL may have. They are known also where this engine is not built in.

pub(crate) const NAMES: &[&str] = &["ttl", "tls", "cacert", "cert", "key", "connect_timeout"];
