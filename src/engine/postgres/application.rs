//! The application name of a session: `backupd[4321]@db1`, and behind it the time since when it holds a lock, in seconds
//! since 1970.
//!
//! The server shows this name to everybody, so the name tells who holds a lock.

use std::io;
use std::time::{Duration, SystemTime};

use crate::sys::{self, process};
use crate::util::blocking;
use crate::words::holder::Holder;

/// PostgreSQL cuts longer names.
const LONGEST: usize = 63;

/// Room for ` 1764187200`.
const TIME: usize = 11;

/// The name of this process. It needs no quotes in SQL. `program` is shown instead of the program's own name.
pub(super) async fn name(program: Option<&str>) -> io::Result<String> {
    let us = blocking::run(|| process::this_process(SystemTime::now())).await?;
    let program = program.or_else(|| us.name()).unwrap_or_default();
    let host = sys::host_name();
    Ok(compose(program, us.pid(), &host))
}

pub(super) fn compose(program: &str, pid: u32, host: &str) -> String {
    let (program, host) = (plain(program), plain(host));
    let middle = format!("[{pid}]@");
    let room = LONGEST - TIME - middle.len();
    let host = &host[..host.len().min(room / 2)];
    let program = &program[..program.len().min(room - host.len())];
    format!("{program}{middle}{host}")
}

/// The text in letters, digits and a few signs that mean nothing in SQL or here.
fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_ascii_alphanumeric() || "-_.:/".contains(char) { char } else { '_' }).collect()
}

/// The holder with this application name. `now` is the time on the clock of the server, which the time in the name comes
/// from.
pub(super) fn parse(name: &str, now: u64) -> Option<Holder> {
    let (name, since) = name.rsplit_once(' ')?;
    let (program, rest) = name.rsplit_once('[')?;
    let (pid, host) = rest.split_once("]@")?;
    let pid = pid.parse().ok()?;
    // The clocks of the two machines may differ, so only the difference counts.
    let held = Duration::from_secs(now.saturating_sub(since.parse().ok()?));
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Some(Holder::new(pid, some(program), SystemTime::now().checked_sub(held)).on_host(some(host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_who_holds_the_lock() {
        let name = compose("back up'd", 4321, "db1");
        assert_eq!(name, "back_up_d[4321]@db1");
        let holder = parse(&format!("{name} 1000"), 1192).unwrap();
        assert_eq!(holder.to_string(), "pid 4321 (back_up_d) on db1 for 3m 12s");
        for foreign in ["psql", "", "a b", "x[y]@z 1", "[1]@ x"] {
            assert!(parse(foreign, 0).is_none(), "{foreign}");
        }
    }

    #[test]
    fn a_long_name_is_cut_and_stays_readable() {
        let name = compose(&"p".repeat(100), u32::MAX, &"h".repeat(100));
        assert!(name.len() + TIME <= LONGEST);
        let holder = parse(&format!("{name} 1764187200"), 1764187200).unwrap();
        assert_eq!(holder.pid(), u32::MAX);
        assert!(holder.host().is_some_and(|host| host.len() > 10));
    }
}
