//! Many processes, one lock, killed and stopped at random, with two independent witnesses.
//!
//! ```text
//! SHLOCK=/usr/lib/news/bin/shlock cargo test --release --test stress -- 20000
//! ```
//!
//! The number is how often the lock is to be taken in each campaign. A naive port of PEAK's `SHLockFile` goes through the
//! same, and must fail: otherwise the rest would prove nothing.

mod supervisor;
mod witness;
mod worker;

use supervisor::Campaign;
use worker::Role::{Flock, Flock1, Inn, Peak, Shlock};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mark, role, dir, id] = &arguments[..]
        && mark == worker::MARK
    {
        return worker::run(role, dir.as_ref(), id);
    }
    let target = arguments.get(1).map_or(20_000, |number| number.parse().expect("a number of acquisitions"));

    let peak = Campaign::new("PEAK alone, which must fail", &[Peak; 6]).run(target, |found| found.violations > 0);
    assert!(peak.violations > 0, "this stress finds nothing");

    let enough = |_: &_| false;
    let campaigns = [
        Campaign::new("shlock alone", &[Shlock; 6]),
        Campaign::new("shlock with INN's shlock(1)", &[Shlock, Shlock, Shlock, Inn, Inn, Inn]),
        Campaign::new("flock alone", &[Flock; 6]),
        Campaign::new("flock with flock(1)", &[Flock, Flock, Flock, Flock1, Flock1, Flock1]),
    ];
    for campaign in campaigns {
        let found = campaign.run(target, enough);
        assert_eq!(found.violations, 0, "two holders");
        assert!(found.lost_updates == 0, "the counter lost {} updates", found.lost_updates);
    }
}
