//! Removes the file of a dead holder by the method of INN. The breaker links the file to a private name and checks that
//! the number of links went up by one. Only then it unlinks the file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::directory::Directory;
use super::judge::Stale;
use super::probe::Probe;
use crate::engine::file::outcome::Thread;
use crate::engine::file::record;
use crate::sys::process::pid_exists;
use crate::sys::{OpenFile, Stat};
use crate::words::error::LockError;

/// So many names are read from a directory in memory in a fraction of a millisecond.
const FEW_NAMES: usize = 256;

/// So many names are read from a directory in some ten milliseconds, in which nobody else can take the lock over. A
/// breaker's link behind them is an unexplained link: it counts until the file is older than the grace period.
const MOST_NAMES: usize = 1 << 14;

pub(super) enum Broken {
    Done(u32),
    Changed,
    Unclear,
    /// The file has links that nothing explains. It last changed at this time.
    Busy(Duration),
    /// The links must be looked for in the whole directory.
    Slow,
}

enum Linked {
    Ours,
    Not(Broken),
}

impl Directory<'_> {
    /// Removes the name of a stale file. We give the file the private name before we lock it exclusively: so an exclusive
    /// flock on a file without that name is a holder's.
    ///
    /// `unexplained` is the time of the file's last change, if the last try could not explain its links then.
    pub(super) fn break_stale(
        &self,
        stale: Stale,
        unexplained: Option<Duration>,
        thread: Thread,
    ) -> Result<Broken, LockError> {
        let Stale { file, pid } = stale;
        let seen = self.stat(&file)?;
        if !self.names(self.name, &seen)? {
            return Ok(Broken::Changed);
        }
        self.check_permission(&seen)?;
        let private = self.breaking();
        let is_linked = seen.links > 1 && self.names(&private, &seen)?;
        let is_created = seen.links > 1 && self.names(&self.creating(), &seen)?;
        let is_explained = seen.links == 1 + u64::from(is_linked) + u64::from(is_created);
        // Our link changes the inode and so resets the file's age. We make the link only if a break is possible.
        let is_old = !is_explained && self.is_older_than_grace(&file)?;
        if !is_explained {
            // Every new link would have changed the file.
            if !is_old && unexplained == Some(seen.changed) {
                return Ok(Broken::Busy(seen.changed));
            }
            if thread == Thread::Executor && self.is_large() {
                return Ok(Broken::Slow);
            }
            if !self.others_links(&seen)?.allow_a_break(is_old) {
                let is_changed = self.stat(&file)?.links != seen.links;
                return Ok(if is_changed { Broken::Changed } else { Broken::Busy(seen.changed) });
            }
        }
        if !is_linked {
            match self.link_breaking(&file)? {
                Linked::Ours => {}
                Linked::Not(why) => return Ok(why),
            }
        }
        let Some(_file) = self.lock_linked(file, &seen)? else {
            return Ok(Broken::Changed);
        };
        // The creator of the file is dead, so only we remove this name.
        if is_created && self.names(&self.creating(), &seen)? {
            self.dir.unlink(&self.creating()).map_err(|error| self.failed("remove the private name of", error))?;
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
        Ok(Broken::Done(pid))
    }

    /// An error if we may not remove the file. Without this check we could make the private name and not remove it again.
    fn check_permission(&self, seen: &Stat) -> Result<(), LockError> {
        if self.dir.keeps_its_names() {
            return Err(self.forbidden("nobody can remove a file from its directory, which is append-only (chattr +a)"));
        }
        match self.dir.lets_us_unlink(seen).map_err(|error| self.failed("look at the directory of", error))? {
            true => Ok(()),
            false => Err(self.is_another_users(seen, "its directory is sticky")),
        }
    }

    /// The error when a dead holder's file belongs to another user, and we may not remove it for this reason.
    fn is_another_users(&self, seen: &Stat, reason: &str) -> LockError {
        let user = seen.owner;
        self.forbidden(&format!(
            "it belongs to user {user}, and {reason}; a process of that user can take it over, and that user or root can remove it by hand"
        ))
    }

    fn forbidden(&self, reason: &str) -> LockError {
        let error = io::Error::new(io::ErrorKind::PermissionDenied, reason);
        self.failed("take over the lock that a dead process has left at", error)
    }

    /// Locks the file exclusively. `None` if somebody else has it locked, or if it has lost the private name: another
    /// breaker has finished with it.
    fn lock_linked(&self, file: Arc<OpenFile>, seen: &Stat) -> Result<Option<Probe>, LockError> {
        let private = self.breaking();
        let Some((file, true)) = self.try_lock(&private, file)? else {
            return Ok(None);
        };
        let file = Probe::new(file);
        let is_it = self.stat(&file)?.is_same_file(seen) && self.names(&private, seen)?;
        Ok(is_it.then_some(file))
    }

    /// Removes the links that dead breakers have left on the file, unless a living breaker works on it.
    ///
    /// Our own link exists, and no living breaker has a link. So nobody else begins to break this file, and its name
    /// stays the lock's. A dead breaker's link stays unused, even if another process gets the same PID.
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

    /// Whether nobody else breaks the file. Every breaker links the file before it unlinks it. If there are more links
    /// than ours, one of the breakers must yield. After the grace period, unexplained links do not count.
    fn is_alone(&self, seen: &Stat, is_old: bool) -> Result<bool, LockError> {
        let now = self.dir.stat(self.name).map_err(|error| self.failed("look at", error))?;
        Ok(now.is_some_and(|now| now.is_same_file(seen) && (now.links == 2 || is_old)))
    }

    /// Gives the file the private name.
    fn link_breaking(&self, file: &File) -> Result<Linked, LockError> {
        let private = self.breaking();
        match self.dir.link(file, Some(self.name), &private) {
            Ok(()) => Ok(Linked::Ours),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.clear_to_use(&private)? {
                true => Ok(Linked::Not(Broken::Changed)),
                false => Ok(Linked::Not(Broken::Unclear)),
            },
            // Another program has removed the file after we looked at it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Linked::Not(Broken::Changed)),
            // The cause is fs.protected_hardlinks, see proc_sys_fs(5).
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && self.stat(file)?.is_another_users() => {
                Err(self.is_another_users(&self.stat(file)?, "this process may not write to it"))
            }
            // Local file systems have hard links. So the cause is the file, which may be immutable.
            Err(error) => Err(self.failed("link stale lock file", error)),
        }
    }

    /// Removes the private name of the file `seen`. We hold the flock of that file. On systems that cannot link a file
    /// by its descriptor, the private name may belong to a newer file. Then we remove the name only if nobody has an
    /// flock on the newer file.
    fn give_way(&self, seen: &Stat) -> Result<(), LockError> {
        let private = self.breaking();
        if self.names(&private, seen)? {
            return self.dir.unlink(&private).map_err(|error| self.failed("remove the private name of", error));
        }
        self.clear_to_use(&private).map(drop)
    }

    /// Whether the directory has so many names that the executor must not search through them.
    fn is_large(&self) -> bool {
        self.dir.names(FEW_NAMES + 1).is_ok_and(|names| names.len() > FEW_NAMES)
    }

    /// The links that the shlock programs of INN and NetBSD have made to the file, among the first [`MOST_NAMES`].
    fn others_links(&self, file: &Stat) -> Result<OthersLinks, LockError> {
        let names = match self.dir.names(MOST_NAMES + 1) {
            // We may not list the directory.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            names => Some(names.map_err(|error| self.failed("list the directory of", error))?),
        };
        let is_complete = names.as_ref().is_some_and(|names| names.len() <= MOST_NAMES);
        let mut links = OthersLinks { dead: Vec::new(), is_being_broken: false, is_complete };
        for name in names.into_iter().flatten() {
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
    /// Whether all names of the directory were seen.
    is_complete: bool,
}

impl OthersLinks {
    fn allow_a_break(&self, is_old: bool) -> bool {
        !self.is_being_broken && (is_old || self.is_complete && !self.dead.is_empty())
    }
}

/// A private name of the shlock programs of INN and NetBSD. `shlock<pid>` is a file that such a program creates.
/// `shlock<pid>x` and `shlock<pid>-2` are files that it breaks.
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
    use super::super::judge::Found;
    use super::*;
    use crate::words::kind::LockKind;
    use crate::words::target::Target;

    #[test]
    fn only_the_other_programs_names_are_purged() {
        for (name, breaks) in [("shlock42", false), ("shlock42x", true), ("shlock42-2", true)] {
            assert_eq!(PeersName::parse(OsStr::new(name)), Some(PeersName { pid: 42, breaks }), "{name}");
        }
        for name in ["shlock", "shlock0", "shlock42y", "shlock 42", "shlock42xx", "xshlock42"] {
            assert_eq!(PeersName::parse(OsStr::new(name)), None, "{name}");
        }
    }

    /// Makes the lock file of a dead process, and lets a breaker find it.
    fn found_stale(directory: &Directory) -> Stale {
        std::fs::write(directory.target.path(), record::shlock(4_194_305, record::Mark::Proof)).unwrap();
        match directory.contend(None).unwrap() {
            Found::Stale(stale) => stale,
            _ => panic!("not stale"),
        }
    }

    #[test]
    fn a_breaker_who_linked_the_next_file_leaves_its_breaker_the_private_name() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::file(LockKind::Shlock, &dir.path().join("x.lock"), Default::default()).unwrap();
        let directory = Directory::open(&target).unwrap();
        let late = found_stale(&directory);
        let late_seen = directory.stat(&late.file).unwrap();
        std::fs::remove_file(target.path()).unwrap();
        let next = found_stale(&directory);
        let private = dir.path().join(directory.breaking());
        std::fs::hard_link(target.path(), &private).unwrap();
        let next_seen = directory.stat(&next.file).unwrap();
        let locked = directory.lock_linked(Arc::clone(&next.file), &next_seen).unwrap();
        assert!(locked.is_some());
        directory.give_way(&late_seen).unwrap();
        assert!(private.exists(), "removed without its file's lock");
        drop(locked);
        assert!(matches!(directory.break_stale(next, None, Thread::Pool), Ok(Broken::Done(4_194_305))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// How often a directory was listed since the last call.
    #[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
    fn listings(watch: &std::os::fd::OwnedFd) -> usize {
        use rustix::fs::inotify::{ReadFlags, Reader};
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(watch, &mut buffer);
        std::iter::from_fn(|| events.next().ok().map(|event| event.events().contains(ReadFlags::ISDIR)))
            .filter(|&is_listing| is_listing)
            .count()
    }

    #[cfg(all(target_os = "linux", not(tokio_lockfile_test_portable)))]
    #[test]
    fn a_wait_searches_the_directory_again_only_after_the_links_have_changed() {
        use crate::engine::file::outcome::{Contended, Outcome};
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let target = Target::file(LockKind::Shlock, &path, Default::default()).unwrap();
        std::fs::write(&path, record::shlock(4_194_305, record::Mark::Proof)).unwrap();
        std::fs::hard_link(&path, dir.path().join("planted")).unwrap();
        let watch = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        add_watch(&watch, dir.path(), WatchFlags::ACCESS).unwrap();
        let look = |last: &Contended| match super::super::attempt(&target, last, Thread::Pool).unwrap() {
            Outcome::Busy(contended) => (contended, listings(&watch)),
            _ => panic!("not busy"),
        };
        let (last, first) = look(&Contended::default());
        assert_ne!(first, 0);
        let (last, again) = look(&last);
        assert_eq!(again, 0);
        std::fs::hard_link(&path, dir.path().join("another")).unwrap();
        assert_ne!(look(&last).1, 0);
    }

    #[test]
    fn a_search_through_a_directory_has_an_end() {
        let dir = tempfile::tempdir_in(if cfg!(target_os = "linux") { "/dev/shm" } else { "/tmp" }).unwrap();
        let target = Target::file(LockKind::Shlock, &dir.path().join("x.lock"), Default::default()).unwrap();
        let directory = Directory::open(&target).unwrap();
        // Where all names are seen, a dead breaker's link is no reason to wait.
        let break_it = || {
            let stale = found_stale(&directory);
            std::fs::hard_link(target.path(), dir.path().join("shlock4194305x")).unwrap();
            directory.break_stale(stale, None, Thread::Pool).unwrap()
        };
        assert!(matches!(break_it(), Broken::Done(_)));
        (0..MOST_NAMES).for_each(|number| drop(File::create(dir.path().join(number.to_string())).unwrap()));
        assert!(matches!(break_it(), Broken::Busy(_)));
    }
}
