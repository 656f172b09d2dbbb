//! Taking a dead holder's file away, in INN's discipline: link it to a private name, look whether the count of links
//! went up by one, and only then unlink it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;

use super::making::Cleared;
use super::{Place, Stale, record};
use crate::error::LockError;
use crate::process::pid_exists;
use crate::sys::Stat;

pub(super) enum Broken {
    Done(u32),
    Changed,
    Unclear,
    Busy,
}

enum Linked {
    Ours,
    Not(Broken),
}

impl Place<'_> {
    /// Takes a stale file's name away, with its flock held all the while.
    pub(super) fn break_stale(&self, stale: Stale) -> Result<Broken, LockError> {
        let seen = self.stat(&stale.file)?;
        if !self.names(self.name, &seen)? {
            return Ok(Broken::Changed);
        }
        let (private, making) = (self.breaking(), self.making());
        let is_linked = seen.links > 1 && self.names(&private, &seen)?;
        let is_made = seen.links > 1 && self.names(&making, &seen)?;
        let is_explained = seen.links == 1 + u64::from(is_linked) + u64::from(is_made);
        // Our link makes the file young again, so it comes only where something may come of it.
        let is_old = !is_explained && self.is_older_than_grace(&stale.file)?;
        if !is_explained && !self.others_links(&seen)?.allow_a_break(is_old) {
            let is_changed = self.stat(&stale.file)?.links != seen.links;
            return Ok(if is_changed { Broken::Changed } else { Broken::Busy });
        }
        // Else the private name would stay, too.
        if !self.dir.lets_us_unlink(&seen).map_err(|error| self.failed("look at the directory of", error))? {
            let action = "take over another user's lock file in a sticky directory, left behind at";
            return Err(self.failed(action, io::ErrorKind::PermissionDenied.into()));
        }
        if !is_linked {
            match self.link_breaking(&stale.file)? {
                Linked::Ours => {}
                Linked::Not(why) => return Ok(why),
            }
        }
        if is_made {
            self.dir.unlink(&making).map_err(|error| self.failed("remove the private name of", error))?;
        }
        let is_ours_to_break = (is_explained || self.remove_dead_links(&seen)?) && self.is_alone(&seen, is_old)?;
        if !is_ours_to_break {
            self.give_way(&seen)?;
            return Ok(Broken::Unclear);
        }
        self.dir.unlink(self.name).map_err(|error| {
            let _ = self.dir.unlink(&private);
            self.failed("remove stale lock file", error)
        })?;
        self.dir.unlink(&private).map_err(|error| self.failed("remove the private name of", error))?;
        Ok(Broken::Done(stale.pid))
    }

    /// Removes what dead breakers have left on the file, unless a living one is at work on it.
    ///
    /// Where our own link is there first, and none of a living breaker, nobody begins to break this file any more. So it
    /// stays the lock, and a name judged dead stays so, even if its PID is given anew.
    fn remove_dead_links(&self, seen: &Stat) -> Result<bool, LockError> {
        let others = self.others_links(seen)?;
        if others.is_being_broken || !self.names(self.name, seen)? {
            return Ok(false);
        }
        for name in others.dead {
            self.dir.unlink(&name).map_err(|error| self.failed("remove a dead process's link to", error))?;
        }
        Ok(true)
    }

    /// Whether nobody else breaks the file. Another breaker links before it unlinks, as we do: with more than our own
    /// link, one of us must yield. Links that nobody has explained in the time of grace do not count.
    fn is_alone(&self, seen: &Stat, is_old: bool) -> Result<bool, LockError> {
        let now = self.dir.stat(self.name).map_err(|error| self.failed("look at", error))?;
        Ok(now.is_some_and(|now| now.is_same_file(seen) && (now.links == 2 || is_old)))
    }

    /// Gives the file the private name.
    fn link_breaking(&self, file: &File) -> Result<Linked, LockError> {
        let private = self.breaking();
        match self.dir.link(file, Some(self.name), &private) {
            Ok(()) => Ok(Linked::Ours),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.clear(&private)? {
                Cleared::Gone => Ok(Linked::Not(Broken::Changed)),
                Cleared::InUse => Ok(Linked::Not(Broken::Unclear)),
            },
            // Another program has removed it since we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Linked::Not(Broken::Changed)),
            // fs.protected_hardlinks, see proc_sys_fs(5).
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && self.stat(file)?.is_another_users() => {
                let action = "take over another user's lock file without permission to write to it, left behind at";
                Err(self.failed(action, error))
            }
            Err(error) => Err(self.link_failed("link stale lock file", error)),
        }
    }

    /// Removes the private name of the file that was seen, whose flock we hold. Where a file cannot be linked by its
    /// descriptor, the private name may be that of another file, which came in between; then its own flock must allow it.
    fn give_way(&self, seen: &Stat) -> Result<(), LockError> {
        let private = self.breaking();
        if self.names(&private, seen)? {
            return self.dir.unlink(&private).map_err(|error| self.failed("remove the private name of", error));
        }
        self.clear(&private)?;
        Ok(())
    }

    /// The file's names that INN's and NetBSD's shlock gave it.
    fn others_links(&self, file: &Stat) -> Result<OthersLinks, LockError> {
        let mut links = OthersLinks { dead: Vec::new(), is_being_broken: false };
        let names = match self.dir.names() {
            // What cannot be seen may be there.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(OthersLinks { is_being_broken: true, ..links });
            }
            names => names.map_err(|error| self.failed("list the directory of", error))?,
        };
        for name in names {
            match PeersName::parse(&name) {
                Some(peer) if self.names(&name, file)? => match pid_exists(peer.pid) {
                    true => links.is_being_broken |= peer.breaks,
                    false => links.dead.push(name),
                },
                _ => {}
            }
        }
        Ok(links)
    }
}

/// Other programs' links to a stale file.
struct OthersLinks {
    dead: Vec<OsString>,
    is_being_broken: bool,
}

impl OthersLinks {
    fn allow_a_break(&self, is_old: bool) -> bool {
        !self.is_being_broken && (is_old || !self.dead.is_empty())
    }
}

/// A private name of INN's or NetBSD's shlock: `shlock<pid>` for the file it makes, `shlock<pid>x` or `shlock<pid>-2` for
/// the one it breaks.
#[derive(Debug, PartialEq, Eq)]
struct PeersName {
    pid: u32,
    breaks: bool,
}

impl PeersName {
    fn parse(name: &OsStr) -> Option<Self> {
        let rest = name.to_str()?.strip_prefix("shlock")?;
        let breaking = rest.strip_suffix("x").or_else(|| rest.strip_suffix("-2"));
        let pid = record::parse_pid(breaking.unwrap_or(rest).as_bytes())?;
        Some(Self { pid, breaks: breaking.is_some() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Found;
    use super::*;
    use crate::kind::LockKind;
    use crate::protocol::Target;

    #[test]
    fn only_the_other_programs_names_are_purged() {
        for (name, breaks) in [("shlock42", false), ("shlock42x", true), ("shlock42-2", true)] {
            assert_eq!(PeersName::parse(OsStr::new(name)), Some(PeersName { pid: 42, breaks }), "{name}");
        }
        for name in ["shlock", "shlock0", "shlock42y", "shlock 42", "shlock42xx", "xshlock42"] {
            assert_eq!(PeersName::parse(OsStr::new(name)), None, "{name}");
        }
    }

    /// A dead process's lock file, found by a breaker.
    fn found_stale(place: &Place) -> Stale {
        std::fs::write(&place.target.path, record::shlock(4_194_305)).unwrap();
        match place.contend(None).unwrap() {
            Found::Stale(stale) => stale,
            _ => panic!("not stale"),
        }
    }

    #[test]
    fn a_breaker_who_linked_the_next_file_leaves_its_breaker_the_private_name() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::new(LockKind::Shlock, &dir.path().join("x.lock"), Default::default()).unwrap();
        let place = Place::open(&target).unwrap();
        let late = found_stale(&place);
        let late_seen = place.stat(&late.file).unwrap();
        std::fs::remove_file(&target.path).unwrap();
        let next = found_stale(&place);
        let private = dir.path().join(place.breaking());
        std::fs::hard_link(&target.path, &private).unwrap();
        place.give_way(&late_seen).unwrap();
        assert!(private.exists(), "removed without its file's lock");
        assert!(matches!(place.break_stale(next), Ok(Broken::Done(4_194_305))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
