//! A lock URL as a string, for serde.

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

use super::LockUrl;

/// As a string, with the feature `serde`.
#[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
impl Serialize for LockUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From a string, with the feature `serde`.
#[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
impl<'de> Deserialize<'de> for LockUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(UrlVisitor)
    }
}

struct UrlVisitor;

impl Visitor<'_> for UrlVisitor {
    type Value = LockUrl;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a lock URL, such as lockfile:/run/app.lock")
    }

    fn visit_str<E: Error>(self, url: &str) -> Result<LockUrl, E> {
        url.parse().map_err(E::custom)
    }
}
