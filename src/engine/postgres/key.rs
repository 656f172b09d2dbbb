//! The number of a lock: what pg_advisory_lock(bigint) takes.

use sha2::{Digest, Sha256};

/// The first eight bytes, big endian, of the SHA-256 of the name. In SQL:
/// `('x' || encode(sha256('NAME'), 'hex'))::bit(64)::bigint`.
pub(super) fn of_name(name: &str) -> i64 {
    let digest = Sha256::digest(name.as_bytes());
    let (first, _) = digest.split_first_chunk().expect("a SHA-256 has 32 bytes");
    i64::from_be_bytes(*first)
}

#[cfg(test)]
mod tests {
    /// What PostgreSQL 15 answers to the SQL above.
    #[test]
    fn a_name_has_the_number_that_sql_gives_it() {
        assert_eq!(super::of_name("nightly"), 3_043_134_503_785_307_926);
    }
}
