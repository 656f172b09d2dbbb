//! Fencing tokens: a number that grows with every grant, also over a crash and a failover of the server.

/// The timeline of the server is above the number of its transaction. A crash leaves the timeline and does not repeat a
/// number that was flushed; a promotion begins a higher timeline.
const TIMELINE_SHIFT: u32 = 48;

/// The token of a grant `XID WALFILE …`. The name of a WAL file begins with the timeline, in eight hexadecimal digits.
pub(super) fn parse(grant: &str) -> Option<u64> {
    let mut words = grant.split(' ');
    let xid: u64 = words.next()?.parse().ok()?;
    let timeline = u64::from_str_radix(words.next()?.get(..8)?, 16).ok()?;
    let is_in_range = xid >> TIMELINE_SHIFT == 0 && timeline >> (u64::BITS - TIMELINE_SHIFT) == 0;
    is_in_range.then_some(timeline << TIMELINE_SHIFT | xid)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_timeline_is_above_the_transaction() {
        assert_eq!(parse("724 000000010000000000000001 0/1523A0"), Some(1 << 48 | 724));
        assert!(parse("1 000000020000000000000001 0/0") > parse("281474976710655 000000010000000000000001 0/0"));
        assert_eq!(parse("281474976710656 000000010000000000000001 0/0"), None);
        assert_eq!(parse("-"), None);
        assert_eq!(parse(""), None);
    }
}
