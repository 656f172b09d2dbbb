//! Percent-encoding, as RFC 3986 has it.

/// Whether each % begins an encoded byte.
pub(super) fn check(text: &str) -> Result<(), &'static str> {
    let is_hex =
        |at: usize| text.as_bytes().get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    match text.match_indices('%').all(|(at, _)| is_hex(at)) {
        true => Ok(()),
        false => Err("a % is not followed by two hexadecimal digits; write % itself as %25"),
    }
}
