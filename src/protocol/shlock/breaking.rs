//! Taking a dead holder's file away, in INN's discipline: link it to a private name, look whether the count of links
//! went up by one, and only then unlink it.

use std::ffi::{OsStr, OsString};
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

impl Place<'_> {
    /// Takes a stale file's name away, with its flock held all the while.
    pub(super) fn break_stale(&self, stale: Stale) -> Result<Broken, LockError> {
        let mut seen = self.stat(&stale.file)?;
        if !self.names(self.name, &seen)? {
            return Ok(Broken::Changed);
        }
        if seen.links != 1 {
            self.purge(&seen)?;
            seen = self.stat(&stale.file)?;
            if seen.links == 0 {
                return Ok(Broken::Changed);
            }
            if seen.links != 1 && !self.is_older_than_grace(&stale.file)? {
                return Ok(Broken::Busy);
            }
        }
        let private = self.breaking();
        match self.dir.link(&stale.file, Some(self.name), &private) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(match self.clear(&private)? {
                    Cleared::Gone => Broken::Changed,
                    Cleared::InUse => Broken::Unclear,
                });
            }
            // Another program has removed it since we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Broken::Changed),
            Err(error) => return Err(self.link_failed("link stale lock file", error)),
        }
        // Another breaker (INN's) links before it unlinks, as we do: with more than our own link, one of us must yield.
        // Where links cannot be explained, their number tells nothing. But nobody starts to break a file with so many
        // links, so it is enough to look whether somebody had started before.
        let unexplained = seen.links != 1;
        let yields = unexplained && self.is_being_broken(&seen)?;
        let linked = self.dir.stat(self.name).map_err(|error| self.failed("look at", error))?;
        let is_ours = |now: Stat| now.is_same_file(&seen) && (unexplained || now.links == 2);
        let alone = !yields && linked.is_some_and(is_ours);
        if alone {
            self.dir.unlink(self.name).map_err(|error| {
                let _ = self.dir.unlink(&private);
                self.failed("remove stale lock file", error)
            })?;
            self.dir.unlink(&private).map_err(|error| self.failed("remove the private name of", error))?;
            return Ok(Broken::Done(stale.pid));
        }
        self.give_way(&seen)?;
        Ok(Broken::Unclear)
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

    /// Removes the links that dead breakers left on the file, whose flock we hold.
    fn purge(&self, stale: &Stat) -> Result<(), LockError> {
        for name in [self.breaking(), self.making()] {
            if self.names(&name, stale)? {
                self.dir.unlink(&name).map_err(|error| self.failed("remove a dead process's link to", error))?;
            }
        }
        for (name, peer) in self.peers_names()?.unwrap_or_default() {
            if !pid_exists(peer.pid) && self.names(&name, stale)? {
                self.dir.unlink(&name).map_err(|error| self.failed("remove a dead process's link to", error))?;
            }
        }
        Ok(())
    }

    /// Whether another program, still alive, has a link to the file with which it breaks the lock; `true` if that cannot
    /// be seen.
    fn is_being_broken(&self, stale: &Stat) -> Result<bool, LockError> {
        let Some(names) = self.peers_names()? else {
            return Ok(true);
        };
        for (name, peer) in names {
            if peer.breaks && pid_exists(peer.pid) && self.names(&name, stale)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Private names of INN's and NetBSD's shlock in the directory; `None` where it may not be listed.
    fn peers_names(&self) -> Result<Option<Vec<(OsString, PeersName)>>, LockError> {
        let names = match self.dir.names() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            names => names.map_err(|error| self.failed("list the directory of", error))?,
        };
        Ok(Some(names.into_iter().filter_map(|name| PeersName::parse(&name).map(|parsed| (name, parsed))).collect()))
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
