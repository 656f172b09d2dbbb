//! The private names of a lock file.

use std::ffi::{OsStr, OsString};

/// Returns `.NAME.tokio-lockfile.PURPOSE`. A hash replaces a NAME that is too long.
pub(super) fn private_name(name: &OsStr, purpose: &str) -> OsString {
    const LONGEST: usize = 200;
    let mut private = OsString::from(".");
    if name.len() <= LONGEST {
        private.push(name);
    } else {
        private.push(format!("{:016x}", fnv1a(name.as_encoded_bytes())));
    }
    private.push(".tokio-lockfile.");
    private.push(purpose);
    private
}

/// The FNV-1a hash (<http://www.isthe.com/chongo/tech/comp/fnv/>). It is the same in all versions of this crate and of
/// Rust.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!((fnv1a(b""), fnv1a(b"foobar")), (0xcbf2_9ce4_8422_2325, 0x8594_4171_f739_67e8));
    }

    #[test]
    fn private_names_fit_where_the_lock_fits() {
        assert_eq!(private_name(OsStr::new("app.lock"), "break"), ".app.lock.tokio-lockfile.break");
        assert!(private_name(OsStr::new(&"x".repeat(255)), "break").len() <= 255);
    }
}
