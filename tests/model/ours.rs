//! Our protocol, with the same functions as in src/engine/file/shlock/.

use super::protocol::{At, Clear, Created, Kind, Links, Model, Purpose, Then, is_alive};
use super::state::{Inode, Local, Name, Process, Record, State};

/// What a name shows about its owner: it is dead, it is breaking the lock, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Dead,
    Breaks,
    Nothing,
}

impl Model {
    /// One system call of a process of ours.
    pub(super) fn step_ours(&self, state: &mut State<At>, process: Process) {
        let next = self.contend(state, process);
        let next = next.or_else(|| self.break_stale(state, process));
        let next = next.or_else(|| self.clear(state, process));
        let next = next.or_else(|| self.acquire(state, process));
        let next = next.or_else(|| self.release(state, process));
        state.local_mut(process).at = next.expect("one of these makes the call");
    }

    /// Looks at the name, to find out who holds the lock.
    fn contend(&self, state: &mut State<At>, process: Process) -> Option<At> {
        let record = |state: &State<At>| state.file(state.open(process)).record;
        Some(match state.local(process).at {
            At::Idle => At::Open,
            At::Open => match state.look_up(Name::Lock) {
                found @ Some(_) => {
                    state.local_mut(process).file = found;
                    At::Share
                }
                None => At::Create(Purpose::Lock),
            },
            At::Share => match state.try_share(process, state.open(process)) {
                true => At::Unshare,
                false => At::Read { is_locked: true },
            },
            At::Unshare => {
                state.unlock(process, state.open(process));
                match self.without.look_after_flock {
                    true => At::Read { is_locked: false },
                    false => At::LookAgain,
                }
            }
            At::LookAgain => match names_lock(state, state.open(process)) {
                true => At::Read { is_locked: false },
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::Read { is_locked: true } => At::LookForBreaker,
            At::Read { is_locked: false } => match record(state) {
                Record::Marked(_) => At::CountLinks,
                Record::Foreign(_) => At::AskPid,
                // Not our file, so it is never removed: our files have a record before they get the name.
                Record::Blank => At::UnlockStale { then: Then::GiveUp },
            },
            At::AskPid => match record(state) {
                Record::Foreign(pid) if !is_alive(state, pid) => At::CountLinks,
                _ => At::UnlockStale { then: Then::GiveUp },
            },
            // The file belongs to a breaker, or it is held: both end the attempt.
            At::LookForBreaker => match state.has_name(state.open(process), Name::Breaking) {
                true => At::UnlockStale { then: Then::GiveUp },
                false => At::LookLocked,
            },
            At::LookLocked => match names_lock(state, state.open(process)) {
                true => At::UnlockStale { then: Then::GiveUp },
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::UnlockStale { then } => {
                state.close_all(process);
                match then {
                    Then::LookAgain => At::Open,
                    Then::Create => At::Create(Purpose::Lock),
                    Then::GiveUp => At::Idle,
                }
            }
            _ => return None,
        })
    }

    /// Removes a stale file.
    fn break_stale(&self, state: &mut State<At>, process: Process) -> Option<At> {
        let kind = self.kinds[process];
        Some(match state.local(process).at {
            At::CountLinks => {
                let links = state.links(state.open(process));
                state.local_mut(process).links = links;
                match names_lock(state, state.open(process)) {
                    _ if self.without.look_after_flock => At::UnlinkStale,
                    false => At::UnlockStale { then: Then::LookAgain },
                    _ if self.without.link_discipline => At::UnlinkStale,
                    _ if links == 1 => At::LinkBreaking { links: Links::Explained },
                    _ if self.without.purge => At::UnlockStale { then: Then::GiveUp },
                    _ => At::LookForOwnLink,
                }
            }
            At::LookForOwnLink => {
                let links = std::mem::take(&mut state.local_mut(process).links);
                let [is_linked, has_creating_name] =
                    [Name::Breaking, Name::Creating].map(|name| state.has_name(state.open(process), name));
                let local = state.local_mut(process);
                (local.is_linked, local.has_creating_name) = (is_linked, has_creating_name);
                match links == 1 + u8::from(is_linked) + u8::from(has_creating_name) {
                    true if is_linked => At::Flock { links: Links::Explained },
                    true => At::LinkBreaking { links: Links::Explained },
                    false if kind.creates_named() => At::Create(Purpose::Age),
                    false => At::AskAge,
                }
            }
            At::AskAge if state.file(state.open(process)).is_old => At::LookForOthers { links: Links::Old },
            At::AskAge => At::LookForOthers { links: Links::Young },
            At::LookForOthers { links } => {
                let judged = |wanted| self.names().any(|name| self.judge(state, state.open(process), name) == wanted);
                match !judged(Judged::Breaks) && (links == Links::Old || judged(Judged::Dead)) {
                    true if state.local(process).is_linked => At::Flock { links },
                    true => At::LinkBreaking { links },
                    false => At::UnlockStale { then: Then::GiveUp },
                }
            }
            At::LinkBreaking { links } => match self.to_link(state, process, state.open(process), Name::Lock) {
                None => At::UnlockStale { then: Then::LookAgain },
                Some(inode) => match state.link(inode, Name::Breaking) {
                    true => At::Flock { links },
                    false => At::ClearOpen(Clear::Breaker),
                },
            },
            At::Flock { links } => match state.try_lock(process, state.open(process)) {
                true if self.without.look_after_flock => after_flock(links),
                true => At::LookFlocked { links },
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::LookFlocked { links } => match state.has_name(state.open(process), Name::Breaking) {
                true if state.local(process).has_creating_name => At::LookCreated { links },
                true => after_flock(links),
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::LookCreated { links } => {
                state.local_mut(process).has_creating_name = false;
                match state.has_name(state.open(process), Name::Creating) {
                    true => At::UnlinkCreated { links },
                    false => after_flock(links),
                }
            }
            At::UnlinkCreated { links } => {
                state.unlink(Name::Creating);
                after_flock(links)
            }
            At::ListLinks { links } => At::JudgeLink { links, number: 0, dead: 0 },
            At::JudgeLink { links, number, dead } => match self.names().nth(number.into()) {
                Some(name) => match self.judge(state, state.open(process), name) {
                    Judged::Breaks => At::GiveWay,
                    Judged::Dead => At::JudgeLink { links, number: number + 1, dead: dead | 1 << number },
                    Judged::Nothing => At::JudgeLink { links, number: number + 1, dead },
                },
                None => At::LookUnbroken { links, dead },
            },
            At::LookUnbroken { links, dead } => {
                match names_lock(state, state.open(process)) || self.without.look_before_purge {
                    true => after_removal(links, dead),
                    false => At::GiveWay,
                }
            }
            At::RemoveDeadLink { links, dead } => {
                let number = dead.trailing_zeros();
                match self.names().nth(number as usize).expect("the link has been judged") {
                    Name::Leftover => state.remove_leftovers(state.open(process)),
                    name => state.unlink(name),
                }
                after_removal(links, dead & !(1 << number))
            }
            At::LookLinked { links } => {
                let alone = names_lock(state, state.open(process))
                    && (links == Links::Old || state.links(state.open(process)) == 2);
                if alone { At::UnlinkStale } else { At::GiveWay }
            }
            At::GiveWay => match state.has_name(state.open(process), Name::Breaking) {
                true => At::UnlinkBreaking { then: Then::GiveUp },
                false => At::ClearOpen(Clear::Breaker),
            },
            At::UnlinkStale => {
                state.unlink(Name::Lock);
                match self.without.link_discipline || self.without.look_after_flock {
                    true => At::UnlockStale { then: Then::Create },
                    false => At::UnlinkBreaking { then: Then::Create },
                }
            }
            At::UnlinkBreaking { then } => {
                state.unlink(Name::Breaking);
                state.local_mut(process).links = 0;
                At::UnlockStale { then }
            }
            _ => return None,
        })
    }

    /// Removes a private name if the process that created it is dead.
    fn clear(&self, state: &mut State<At>, process: Process) -> Option<At> {
        Some(match state.local(process).at {
            At::ClearOpen(clear) => {
                state.local_mut(process).private = state.look_up(clear.name());
                match state.local(process).private {
                    Some(_) => At::ClearFlock(clear),
                    None => after_clear(clear),
                }
            }
            // A lock on one descriptor also excludes another descriptor of the same process.
            At::ClearFlock(clear) => {
                match state.try_lock(process, state.private(process)) || self.without.flock_before_clear {
                    true => At::ClearLook(clear),
                    // A breaker may be about to remove our new file. It stays, and the next process judges it.
                    false if clear == Clear::Publisher && !self.without.look_for_a_breaker => {
                        At::UnlockStale { then: Then::GiveUp }
                    }
                    false => {
                        state.local_mut(process).private = None;
                        after_clear(clear)
                    }
                }
            }
            At::ClearLook(clear) => match state.has_name(state.private(process), clear.name()) {
                true => At::ClearUnlink(clear),
                false => At::ClearUnlock(clear),
            },
            At::ClearUnlink(clear) => {
                state.unlink(clear.name());
                At::ClearUnlock(clear)
            }
            At::ClearUnlock(clear) => {
                state.unlock(process, state.private(process));
                state.local_mut(process).private = None;
                after_clear(clear)
            }
            _ => return None,
        })
    }

    /// Creates the lock file, or a file whose age is compared with that of the lock file.
    fn acquire(&self, state: &mut State<At>, process: Process) -> Option<At> {
        let kind = self.kinds[process];
        Some(match state.local(process).at {
            At::Create(purpose) => match kind.creates_named() && state.look_up(Name::Creating).is_some() {
                true => At::ClearOpen(Clear::Creator(purpose)),
                false => {
                    let inode = state.create();
                    state.local_mut(process).created = Some(inode);
                    if kind.creates_named() {
                        state.link(inode, Name::Creating);
                    }
                    if self.without.flock_before_link { At::Write } else { At::FlockOwn(purpose) }
                }
            },
            At::FlockOwn(purpose) => match (state.try_lock(process, state.created(process)), purpose) {
                (true, Purpose::Lock) if kind.creates_named() && self.without.look_at_creating => At::Write,
                (true, _) if kind.creates_named() => At::LookCreating(purpose),
                (true, _) => At::Write,
                (false, _) => fail_to_create(state, process, purpose),
            },
            At::LookCreating(purpose) => match (state.has_name(state.created(process), Name::Creating), purpose) {
                (true, Purpose::Lock) => At::Write,
                (true, Purpose::Age) if state.file(state.open(process)).is_old => {
                    At::UnlinkCreating(Created::Compared(Links::Old))
                }
                (true, Purpose::Age) => At::UnlinkCreating(Created::Compared(Links::Young)),
                (false, _) => fail_to_create(state, process, purpose),
            },
            At::Write => {
                state.file_mut(state.created(process)).record = Record::Marked(Some(process as u8));
                At::Publish
            }
            At::Publish => {
                let to_link = self.to_link(state, process, state.created(process), Name::Creating);
                match (to_link.is_some_and(|inode| state.link(inode, Name::Lock)), kind.creates_named()) {
                    (true, true) => At::UnlinkCreating(Created::Published),
                    (true, false) => At::ClearOpen(Clear::Publisher),
                    (false, true) => At::UnlinkCreating(Created::InVain),
                    (false, false) => At::UnlockStale { then: Then::LookAgain },
                }
            }
            At::UnlinkCreating(then) => {
                state.unlink(Name::Creating);
                match then {
                    Created::Published => At::ClearOpen(Clear::Publisher),
                    Created::InVain => At::UnlockStale { then: Then::LookAgain },
                    Created::Compared(links) => {
                        state.unlock(process, state.created(process));
                        state.local_mut(process).created = None;
                        At::LookForOthers { links }
                    }
                }
            }
            At::FlockPublished => match state.try_lock(process, state.created(process)) {
                true => At::Held,
                false => At::UnlockStale { then: Then::GiveUp },
            },
            At::LookPublished => match names_lock(state, state.created(process)) || self.without.look_published {
                true if self.without.flock_before_link => At::FlockPublished,
                true => At::Held,
                false => At::UnlockStale { then: Then::LookAgain },
            },
            _ => return None,
        })
    }

    /// Releases the lock.
    fn release(&self, state: &mut State<At>, process: Process) -> Option<At> {
        Some(match state.local(process).at {
            At::Held => At::LookHeld,
            At::LookHeld if self.without.unlink_before_unlock => {
                state.unlock(process, state.created(process));
                At::UnlinkHeld
            }
            At::LookHeld => At::UnlinkHeld,
            At::UnlinkHeld => {
                state.unlink(Name::Lock);
                At::UnlockHeld
            }
            At::UnlockHeld => {
                state.close_all(process);
                At::Idle
            }
            _ => return None,
        })
    }

    /// The file that link(2) links: the open file, or the file that its name leads to now.
    fn to_link(&self, state: &State<At>, process: Process, inode: Inode, name: Name) -> Option<Inode> {
        match self.kinds[process] {
            Kind::Portable => state.look_up(name),
            // A file that has lost its last name cannot get another. A file that never had a name can.
            kind => Some(inode).filter(|&inode| state.links(inode) > 0 || !kind.creates_named()),
        }
    }

    /// The names that `others_links` judges, one after the other.
    fn names(&self) -> impl Iterator<Item = Name> {
        let peers = (0..self.kinds.len()).filter(|&process| !self.kinds[process].is_ours());
        let names = peers.flat_map(|peer| [Name::Temporary(peer as u8), Name::Second(peer as u8)]);
        names.chain([Name::Leftover])
    }

    fn judge(&self, state: &State<At>, file: Inode, name: Name) -> Judged {
        let is_alive = match name {
            Name::Temporary(peer) | Name::Second(peer) => state.local(peer.into()).at != At::Dead,
            _ => false,
        };
        match name {
            _ if !state.has_name(file, name) => Judged::Nothing,
            Name::Second(_) if is_alive && !self.without.look_for_breakers => Judged::Breaks,
            _ if is_alive => Judged::Nothing,
            _ => Judged::Dead,
        }
    }

    /// The system calls of the next step of a process of ours, if they affect the result.
    pub(crate) fn calls(&self, state: &State<At>, process: Process) -> Vec<&'static str> {
        let Local { at, file, .. } = *state.local(process);
        let ask_pid = if self.kinds[process] == Kind::Portable { "kill" } else { "pidfd_open" };
        let judging = |name| match name {
            Name::Leftover => vec![],
            name if file.is_some_and(|file| state.has_name(file, name)) => vec!["newfstatat", ask_pid],
            name if state.look_up(name).is_some() => vec!["newfstatat"],
            _ => vec![],
        };
        match at {
            At::Open | At::ClearOpen(_) | At::Create(_) => vec!["openat"],
            At::Share
            | At::Unshare
            | At::Flock { .. }
            | At::ClearFlock(_)
            | At::ClearUnlock(_)
            | At::FlockOwn(_)
            | At::UnlockHeld => vec!["flock"],
            At::UnlockStale { .. } if file.is_some_and(|file| state.file(file).locked_by == Some(process as u8)) => {
                vec!["flock"]
            }
            At::Read { .. } => vec!["pread64"],
            At::AskPid => vec![ask_pid],
            At::LookAgain
            | At::LookForBreaker
            | At::LookLocked
            | At::LookFlocked { .. }
            | At::LookCreated { .. }
            | At::CountLinks
            | At::LookUnbroken { .. }
            | At::LookLinked { .. }
            | At::GiveWay
            | At::ClearLook(_)
            | At::LookCreating(_)
            | At::LookPublished => vec!["newfstatat"],
            At::LookForOwnLink => vec!["newfstatat", "newfstatat"],
            At::AskAge => vec!["openat", "flock"],
            At::LookForOthers { .. } => std::iter::once("getdents64").chain(self.names().flat_map(judging)).collect(),
            At::ListLinks { .. } => vec!["getdents64"],
            At::JudgeLink { number, .. } => self.names().nth(number.into()).map_or(vec![], judging),
            At::LinkBreaking { .. } | At::Publish => vec!["linkat"],
            At::RemoveDeadLink { .. }
            | At::UnlinkStale
            | At::UnlinkBreaking { .. }
            | At::UnlinkCreated { .. }
            | At::UnlinkCreating(_)
            | At::ClearUnlink(_)
            | At::UnlinkHeld => vec!["unlinkat"],
            At::Write => vec!["pwrite64", "utimensat"],
            // LockGuard::release also looks at the path: it may lead to another directory now.
            At::LookHeld => vec!["newfstatat", "newfstatat"],
            _ => vec![],
        }
    }
}

fn names_lock(state: &State<At>, inode: Inode) -> bool {
    state.look_up(Name::Lock) == Some(inode)
}

/// `create` answers that another process is creating a file.
fn fail_to_create(state: &mut State<At>, process: Process, purpose: Purpose) -> At {
    let created = state.local_mut(process).created.take().expect("the process has created a file");
    state.unlock(process, created);
    after_clear(Clear::Creator(purpose))
}

/// The next call once only we have the file locked, under the breakers' private name alone.
fn after_flock(links: Links) -> At {
    match links {
        Links::Explained => At::LookLinked { links },
        _ => At::ListLinks { links },
    }
}

fn after_removal(links: Links, dead: u8) -> At {
    if dead == 0 { At::LookLinked { links } } else { At::RemoveDeadLink { links, dead } }
}

fn after_clear(clear: Clear) -> At {
    match clear {
        Clear::Publisher => At::LookPublished,
        Clear::Breaker | Clear::Creator(Purpose::Lock) => At::UnlockStale { then: Then::GiveUp },
        Clear::Creator(Purpose::Age) => At::LookForOthers { links: Links::Young },
    }
}
