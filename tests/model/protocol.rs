//! The protocols as programs: each step is one system call.
//!
//! A crash is possible before every step, a pause of any length between any two, and a process may start again at any
//! time, with the PID of its last life or with another.

use super::state::{Inode, Local, Name, PROCESSES, Process, Record, State};

/// Whose program a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ours,
    /// Ours, where no file can be without a name, as on some file systems of Linux.
    Named,
    /// Ours, where besides a file can be linked by a name only, as on other systems.
    Portable,
    Inn,
    NetBsd,
    Peak,
}

impl Kind {
    fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::Named | Self::Portable)
    }

    fn makes_named(self) -> bool {
        matches!(self, Self::Named | Self::Portable)
    }
}

/// What can be left out of our protocol, to see that the search notices.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Without {
    /// Whether the name still stands for the file that has been locked, by whatever look.
    pub(crate) look_after_flock: bool,
    /// The link to a private name, and the count of links.
    pub(crate) link_discipline: bool,
    /// The removal of dead breakers' links, and the grace after which links do not count.
    pub(crate) purge: bool,
    /// The look for a living breaker, where links cannot be explained.
    pub(crate) look_for_breakers: bool,
    /// Whether the name still stands for the file, before what is dead is removed.
    pub(crate) look_before_purge: bool,
    pub(crate) flock_before_link: bool,
    pub(crate) look_at_making: bool,
    pub(crate) flock_before_clear: bool,
    pub(crate) look_published: bool,
    pub(crate) unlink_before_unlock: bool,
}

/// Where a process is: its next system call. Ours name the function in src/protocol/shlock/ that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum At {
    Dead,
    Idle,
    Held,

    /// `open_lock`: openat of the name.
    Open,
    /// `contend`: flock with LOCK_EX.
    Flock,
    /// `contend`, `names`: fstatat of the name.
    LookAgain,
    /// `read`: pread.
    Read,
    /// `judge`: pidfd_open of a foreign record's PID.
    AskPid,
    /// `judge_locked`: flock with LOCK_SH.
    Share,
    /// `is_locked`: LOCK_UN of that.
    Unshare,
    /// `break_stale`: fstat and fstatat.
    CountLinks,
    /// `break_stale`: fstatat of our two private names, where there are more links than one.
    LookForOwnLink,
    /// `is_older_than_grace`.
    AskAge,
    /// `others_links`, before our own link.
    LookForOthers {
        links: Links,
    },
    /// `link_breaking`: linkat, by descriptor.
    LinkBreaking {
        links: Links,
    },
    /// `others_links`: getdents64.
    ListLinks {
        links: Links,
    },
    /// `others_links`: fstatat and pidfd_open, for one name after the other.
    JudgeLink {
        links: Links,
        number: u8,
        dead: u8,
    },
    /// `remove_dead_links`: fstatat of the name.
    LookUnbroken {
        links: Links,
        dead: u8,
    },
    /// `remove_dead_links`: unlinkat of one dead name after the other.
    RemoveDeadLink {
        links: Links,
        dead: u8,
    },
    /// `is_alone`: fstatat of the name.
    LookLinked {
        links: Links,
    },
    /// `break_stale`: unlinkat of the name.
    UnlinkStale,
    /// `break_stale`: unlinkat of the private name, with the lock gone to somebody else or to be made.
    UnlinkBreaking {
        then: Then,
    },
    /// `Probe::drop`: LOCK_UN, close.
    UnlockStale {
        then: Then,
    },
    /// `give_way`, `names`: fstatat of the private name.
    GiveWay,
    /// `break_stale`: unlinkat of the private name under which the stale file was made.
    UnlinkMade {
        links: Links,
    },
    /// `clear`: openat of the private name; then what called it goes on.
    ClearOpen(Clear),
    /// `clear`: flock.
    ClearFlock(Clear),
    /// `clear`, `names`: fstatat.
    ClearLook(Clear),
    /// `clear`: unlinkat.
    ClearUnlink(Clear),
    /// `clear`, `Probe::drop`: LOCK_UN.
    ClearUnlock(Clear),
    /// `create`: openat with O_TMPFILE, or else O_EXCL with the private name.
    Create(Purpose),
    /// `create`: flock.
    FlockOwn(Purpose),
    /// `create`, `names`: fstatat of the private name.
    LookMaking(Purpose),
    /// `PrivateName::drop`: unlinkat.
    UnlinkMaking(Made),
    /// `acquire`: write.
    Write,
    /// `acquire`: linkat, by descriptor.
    Publish,
    /// Only without `flock_before_link`.
    FlockPublished,
    /// `acquire`, `names`: fstatat.
    LookPublished,
    /// `Held::remove`: fstatat of the name.
    LookHeld,
    /// `Held::remove`: unlinkat.
    UnlinkHeld,
    /// `Held::remove`: LOCK_UN.
    UnlockHeld,

    /// The peers': temporary file and record.
    PeerCreate,
    PeerWrite,
    PeerLink,
    PeerOpen,
    PeerRead,
    PeerKill,
    PeerUnlinkSecond,
    PeerCountLinks,
    PeerLinkSecond,
    PeerLook,
    PeerUnlinkStale,
    PeerDropSecond {
        retry: bool,
    },
    PeerCheckOwn,
    PeerDropTemporary {
        held: bool,
    },
    PeerUnlinkHeld,
    /// PEAK's: unlink without another look.
    PeakUnlinkStale,
}

/// What a breaker of ours has made of the number of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Links {
    Explained,
    Young,
    Old,
}

/// Which private name is cleared, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Clear {
    /// The breakers', by the new holder.
    AsHolder,
    /// The breakers', by the next of them.
    ToBreak,
    /// The makers', by the next of them.
    ToMake(Purpose),
}

impl Clear {
    fn name(self) -> Name {
        match self {
            Self::AsHolder | Self::ToBreak => Name::Breaking,
            Self::ToMake(_) => Name::Making,
        }
    }
}

/// What a file is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Purpose {
    Lock,
    /// To compare the stale file's age with.
    Age,
}

/// How it goes on when a file that was made has lost its private name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Made {
    Published,
    InVain,
    Compared(Links),
}

/// What a name says of its owner: dead, at work on the file, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Dead,
    Breaks,
    Nothing,
}

/// How a try goes on after it has let go of what it had open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Then {
    LookAgain,
    Make,
    GiveUp,
}

impl At {
    pub(crate) fn is_held(self) -> bool {
        matches!(self, Self::Held | Self::LookHeld | Self::UnlinkHeld | Self::PeerUnlinkHeld)
    }

    /// Whether a peer has a temporary file to whose age it will compare the lock's.
    pub(crate) fn compares_ages(self) -> bool {
        use At::*;
        matches!(
            self,
            PeerLink
                | PeerOpen
                | PeerRead
                | PeerKill
                | PeerUnlinkSecond
                | PeerCountLinks
                | PeerLinkSecond
                | PeerLook
                | PeerUnlinkStale
                | PeerDropSecond { retry: true }
        )
    }
}

/// Whether a lock may depend on an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chance {
    /// It happens in due course.
    Course,
    /// It may happen, but nobody can count on it: a crash, a PID that comes again.
    Luck,
}

/// Who takes part.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) without: Without,
}

impl Model {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        assert!(kinds.len() <= PROCESSES);
        assert!(kinds.is_sorted(), "so that processes of one kind can change places");
        Self { kinds: kinds.to_vec(), without: Without::default() }
    }

    pub(crate) fn start(&self) -> State<At> {
        State::new(self.kinds.iter().map(|_| At::Idle))
    }

    /// The same state for states between which nothing makes a difference. Two processes of ours that change places are
    /// such; of peers' processes the names tell which is which.
    pub(crate) fn normal(&self, state: &State<At>) -> State<At> {
        let mut order = std::array::from_fn(|process| process);
        order[..self.kinds.len()].sort_by_key(|&process| match self.kinds[process] {
            kind if kind.is_ours() => (kind, Some(state.local(process).at), 0),
            kind => (kind, None, process),
        });
        state.reordered(order).normal(At::compares_ages)
    }

    /// The system calls of a process's next step, as far as they decide anything; ours.
    pub(crate) fn calls(&self, state: &State<At>, process: Process) -> Vec<&'static str> {
        let Local { at, file, .. } = *state.local(process);
        let ask_pid = if self.kinds[process] == Kind::Portable { "kill" } else { "pidfd_open" };
        let judging = |name| match name {
            Name::Litter => vec![],
            name if file.is_some_and(|file| state.has_name(file, name)) => vec!["newfstatat", ask_pid],
            name if state.look_up(name).is_some() => vec!["newfstatat"],
            _ => vec![],
        };
        match at {
            At::Open | At::ClearOpen(_) | At::Create(_) => vec!["openat"],
            At::Flock
            | At::Share
            | At::Unshare
            | At::ClearFlock(_)
            | At::ClearUnlock(_)
            | At::FlockOwn(_)
            | At::UnlockHeld => vec!["flock"],
            At::UnlockStale { .. } if file.is_some_and(|file| state.file(file).locked_by == Some(process as u8)) => {
                vec!["flock"]
            }
            At::Read => vec!["pread64"],
            At::AskPid => vec![ask_pid],
            At::LookAgain
            | At::CountLinks
            | At::LookUnbroken { .. }
            | At::LookLinked { .. }
            | At::GiveWay
            | At::ClearLook(_)
            | At::LookMaking(_)
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
            | At::UnlinkMade { .. }
            | At::UnlinkMaking(_)
            | At::ClearUnlink(_)
            | At::UnlinkHeld => vec!["unlinkat"],
            At::Write => vec!["write"],
            // LockGuard::release looks at the path, too: its directory may be another by now.
            At::LookHeld => vec!["newfstatat", "newfstatat"],
            _ => vec![],
        }
    }

    /// Two holders, or a holder of ours whose name is not his any more.
    pub(crate) fn is_violated(&self, state: &State<At>) -> bool {
        let held = |(process, local): (Process, &Option<Local<At>>)| {
            local.filter(|local| local.at.is_held()).map(|local| (process, local))
        };
        let holders: Vec<_> = state.processes.iter().enumerate().filter_map(held).collect();
        let has_name = |local: &Local<At>| local.made.is_some() && state.look_up(Name::Lock) == local.made;
        holders.len() > 1 || holders.iter().any(|(process, local)| self.kinds[*process].is_ours() && !has_name(local))
    }

    /// What can happen next.
    pub(crate) fn successors(&self, state: &State<At>) -> Vec<(State<At>, Chance)> {
        let mut successors = Vec::new();
        for process in 0..self.kinds.len() {
            let local = state.local(process);
            let mut with = |at: At, chance: Chance, change: &dyn Fn(&mut State<At>) -> bool| {
                let mut next = *state;
                next.local_mut(process).at = at;
                if change(&mut next) {
                    successors.push((next, chance));
                }
            };
            if local.at == At::Dead {
                // With the PID of its last life, on which nobody can count, or with a new one.
                with(At::Idle, Chance::Luck, &|_| true);
                with(At::Idle, Chance::Course, &|next| next.retire(process));
                continue;
            }
            // To end while idle is no crash.
            let chance = if local.at == At::Idle { Chance::Course } else { Chance::Luck };
            with(At::Dead, chance, &|next| {
                next.close_all(process);
                true
            });
            let mut next = *state;
            self.step(&mut next, process);
            successors.push((next, Chance::Course));
        }
        successors.extend(self.ages(state).map(|next| (next, Chance::Course)));
        successors
    }

    /// Thirty seconds pass for the lock file.
    fn ages(&self, state: &State<At>) -> Option<State<At>> {
        let inode = state.look_up(Name::Lock)?;
        let mut next = *state;
        next.file_mut(inode).is_old = true;
        (!state.file(inode).is_old).then_some(next)
    }

    /// One system call of one process.
    pub(crate) fn step(&self, state: &mut State<At>, process: Process) {
        match self.kinds[process] {
            kind if kind.is_ours() => self.step_ours(state, process),
            kind => step_peer(kind, state, process),
        }
    }

    /// The names that `others_links` judges, one after the other.
    fn names(&self) -> impl Iterator<Item = Name> {
        let peers = (0..self.kinds.len()).filter(|&process| !self.kinds[process].is_ours());
        let names = peers.flat_map(|peer| [Name::Temporary(peer as u8), Name::Second(peer as u8)]);
        names.chain([Name::Litter])
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

    fn step_ours(&self, state: &mut State<At>, process: Process) {
        let Local { at, file, made, private, .. } = *state.local(process);
        let file = || file.expect("the lock file is open");
        let made = || made.expect("a file is made");
        let private = || private.expect("the private file is open");
        let names_lock = |state: &State<At>, inode| state.look_up(Name::Lock) == Some(inode);
        let kind = self.kinds[process];
        // The file that link(2) is about: the open one, or what its name leads to by now.
        let to_link = |state: &State<At>, inode: Inode, name| match kind {
            Kind::Portable => state.look_up(name),
            _ => Some(inode).filter(|&inode| state.links(inode) > 0 || !kind.makes_named()),
        };
        let next = match at {
            At::Idle => At::Open,
            At::Open => match state.look_up(Name::Lock) {
                found @ Some(_) => {
                    state.local_mut(process).file = found;
                    At::Flock
                }
                None => At::Create(Purpose::Lock),
            },
            At::Flock => match state.try_lock(process, file()) {
                true if self.without.look_after_flock => At::Read,
                true => At::LookAgain,
                false => At::Read,
            },
            At::LookAgain => match names_lock(state, file()) {
                true => At::Read,
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::Read => match (state.file(file()).record, state.file(file()).locked_by == Some(process as u8)) {
                (Record::Marked(_), true) => At::CountLinks,
                (Record::Foreign(_), _) | (_, false) => At::AskPid,
                (Record::Blank, true) if state.file(file()).is_old => At::CountLinks,
                (Record::Blank, true) => At::UnlockStale { then: Then::GiveUp },
            },
            At::AskPid => {
                let is_locked = state.file(file()).locked_by == Some(process as u8);
                match (state.file(file()).record, is_locked) {
                    (Record::Foreign(pid), true) if !is_alive(state, pid) => At::CountLinks,
                    (_, true) => At::UnlockStale { then: Then::GiveUp },
                    // Refused: busy or unclear, which end the try alike.
                    (Record::Marked(pid) | Record::Foreign(pid), false) if is_alive(state, pid) => At::Share,
                    (_, false) => At::UnlockStale { then: Then::GiveUp },
                }
            }
            At::Share => match state.try_share(process, file()) {
                true => At::Unshare,
                false => At::UnlockStale { then: Then::GiveUp },
            },
            At::Unshare => At::UnlockStale { then: Then::GiveUp },

            At::CountLinks => {
                let links = state.links(file());
                state.local_mut(process).links = links;
                match names_lock(state, file()) {
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
                let [is_linked, is_made] = [Name::Breaking, Name::Making].map(|name| state.has_name(file(), name));
                state.local_mut(process).is_made = is_made;
                match links == 1 + u8::from(is_linked) + u8::from(is_made) {
                    true if is_linked => after_link(state.local(process), Links::Explained),
                    true => At::LinkBreaking { links: Links::Explained },
                    false if kind.makes_named() => At::Create(Purpose::Age),
                    false => At::AskAge,
                }
            }
            At::AskAge if state.file(file()).is_old => At::LookForOthers { links: Links::Old },
            At::AskAge => At::LookForOthers { links: Links::Young },
            At::LookForOthers { links } => {
                let judged = |wanted| self.names().any(|name| self.judge(state, file(), name) == wanted);
                match !judged(Judged::Breaks) && (links == Links::Old || judged(Judged::Dead)) {
                    true if state.look_up(Name::Breaking) == Some(file()) => after_link(state.local(process), links),
                    true => At::LinkBreaking { links },
                    false => At::UnlockStale { then: Then::GiveUp },
                }
            }
            At::LinkBreaking { links } => match to_link(state, file(), Name::Lock) {
                None => At::UnlockStale { then: Then::LookAgain },
                Some(inode) => match state.link(inode, Name::Breaking) {
                    true => after_link(state.local(process), links),
                    false => At::ClearOpen(Clear::ToBreak),
                },
            },
            At::UnlinkMade { links } => {
                state.unlink(Name::Making);
                state.local_mut(process).is_made = false;
                after_link(state.local(process), links)
            }
            At::ListLinks { links } => At::JudgeLink { links, number: 0, dead: 0 },
            At::JudgeLink { links, number, dead } => match self.names().nth(number.into()) {
                Some(name) => match self.judge(state, file(), name) {
                    Judged::Breaks => At::GiveWay,
                    Judged::Dead => At::JudgeLink { links, number: number + 1, dead: dead | 1 << number },
                    Judged::Nothing => At::JudgeLink { links, number: number + 1, dead },
                },
                None => At::LookUnbroken { links, dead },
            },
            At::LookUnbroken { links, dead } => match names_lock(state, file()) || self.without.look_before_purge {
                true => after_removal(links, dead),
                false => At::GiveWay,
            },
            At::RemoveDeadLink { links, dead } => {
                let number = dead.trailing_zeros();
                match self.names().nth(number as usize).expect("has been judged") {
                    Name::Litter => state.remove_litter(file()),
                    name => state.unlink(name),
                }
                after_removal(links, dead & !(1 << number))
            }
            At::LookLinked { links } => {
                let alone = names_lock(state, file()) && (links == Links::Old || state.links(file()) == 2);
                if alone { At::UnlinkStale } else { At::GiveWay }
            }
            At::GiveWay => match state.has_name(file(), Name::Breaking) {
                true => At::UnlinkBreaking { then: Then::GiveUp },
                false => At::ClearOpen(Clear::ToBreak),
            },
            At::UnlinkStale => {
                state.unlink(Name::Lock);
                match self.without.link_discipline || self.without.look_after_flock {
                    true => At::UnlockStale { then: Then::Make },
                    false => At::UnlinkBreaking { then: Then::Make },
                }
            }
            At::UnlinkBreaking { then } => {
                state.unlink(Name::Breaking);
                state.local_mut(process).links = 0;
                At::UnlockStale { then }
            }
            At::UnlockStale { then } => {
                state.close_all(process);
                match then {
                    Then::LookAgain => At::Open,
                    Then::Make => At::Create(Purpose::Lock),
                    Then::GiveUp => At::Idle,
                }
            }

            At::ClearOpen(clear) => {
                state.local_mut(process).private = state.look_up(clear.name());
                match state.local(process).private {
                    Some(_) => At::ClearFlock(clear),
                    None => after_clear(clear),
                }
            }
            // One descriptor's lock excludes another's of the same process, too.
            At::ClearFlock(clear) => match state.try_lock(process, private()) || self.without.flock_before_clear {
                true => At::ClearLook(clear),
                false => {
                    state.local_mut(process).private = None;
                    after_clear(clear)
                }
            },
            At::ClearLook(clear) => match state.has_name(private(), clear.name()) {
                true => At::ClearUnlink(clear),
                false => At::ClearUnlock(clear),
            },
            At::ClearUnlink(clear) => {
                state.unlink(clear.name());
                At::ClearUnlock(clear)
            }
            At::ClearUnlock(clear) => {
                state.unlock(process, private());
                state.local_mut(process).private = None;
                after_clear(clear)
            }

            At::Create(purpose) => match kind.makes_named() && state.look_up(Name::Making).is_some() {
                true => At::ClearOpen(Clear::ToMake(purpose)),
                false => {
                    let inode = state.create();
                    state.local_mut(process).made = Some(inode);
                    if kind.makes_named() {
                        state.link(inode, Name::Making);
                    }
                    if self.without.flock_before_link { At::Write } else { At::FlockOwn(purpose) }
                }
            },
            At::FlockOwn(purpose) => match (state.try_lock(process, made()), purpose) {
                (true, Purpose::Lock) if kind.makes_named() && self.without.look_at_making => At::Write,
                (true, _) if kind.makes_named() => At::LookMaking(purpose),
                (true, _) => At::Write,
                (false, _) => self.fail_to_make(state, process, purpose),
            },
            At::LookMaking(purpose) => match (state.has_name(made(), Name::Making), purpose) {
                (true, Purpose::Lock) => At::Write,
                (true, Purpose::Age) if state.file(file()).is_old => At::UnlinkMaking(Made::Compared(Links::Old)),
                (true, Purpose::Age) => At::UnlinkMaking(Made::Compared(Links::Young)),
                (false, _) => self.fail_to_make(state, process, purpose),
            },
            At::Write => {
                state.file_mut(made()).record = Record::Marked(Some(process as u8));
                At::Publish
            }
            At::Publish => {
                let to_link = to_link(state, made(), Name::Making);
                match (to_link.is_some_and(|inode| state.link(inode, Name::Lock)), kind.makes_named()) {
                    (true, true) => At::UnlinkMaking(Made::Published),
                    (true, false) => At::LookPublished,
                    (false, true) => At::UnlinkMaking(Made::InVain),
                    (false, false) => At::UnlockStale { then: Then::LookAgain },
                }
            }
            At::UnlinkMaking(then) => {
                state.unlink(Name::Making);
                match then {
                    Made::Published if self.without.look_published => At::ClearOpen(Clear::AsHolder),
                    Made::Published => At::LookPublished,
                    Made::InVain => At::UnlockStale { then: Then::LookAgain },
                    Made::Compared(links) => {
                        state.unlock(process, made());
                        state.local_mut(process).made = None;
                        At::LookForOthers { links }
                    }
                }
            }
            At::FlockPublished => match state.try_lock(process, made()) {
                true => At::ClearOpen(Clear::AsHolder),
                false => At::UnlockStale { then: Then::GiveUp },
            },
            At::LookPublished => match names_lock(state, made()) {
                true if self.without.flock_before_link => At::FlockPublished,
                true => At::ClearOpen(Clear::AsHolder),
                false => At::UnlockStale { then: Then::LookAgain },
            },
            At::Held => At::LookHeld,
            At::LookHeld if self.without.unlink_before_unlock => {
                state.unlock(process, made());
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
            other => unreachable!("{other:?} is a peer's, or nobody's"),
        };
        state.local_mut(process).at = next;
    }

    /// `create` answers that another process is making a file.
    fn fail_to_make(&self, state: &mut State<At>, process: Process, purpose: Purpose) -> At {
        let made = state.local_mut(process).made.take().expect("a file is made");
        state.unlock(process, made);
        after_clear(Clear::ToMake(purpose))
    }
}

/// With our link there.
fn after_link(local: &Local<At>, links: Links) -> At {
    match links {
        _ if local.is_made => At::UnlinkMade { links },
        Links::Explained => At::LookLinked { links },
        _ => At::ListLinks { links },
    }
}

fn after_removal(links: Links, dead: u8) -> At {
    if dead == 0 { At::LookLinked { links } } else { At::RemoveDeadLink { links, dead } }
}

fn after_clear(clear: Clear) -> At {
    match clear {
        Clear::AsHolder => At::Held,
        Clear::ToBreak | Clear::ToMake(Purpose::Lock) => At::UnlockStale { then: Then::GiveUp },
        Clear::ToMake(Purpose::Age) => At::LookForOthers { links: Links::Young },
    }
}

fn is_alive(state: &State<At>, pid: Option<u8>) -> bool {
    pid.is_some_and(|process| state.local(process.into()).at != At::Dead)
}

/// INN 2.8's shlock.c, NetBSD's shlock.c 1.15, and PEAK's `SHLockFile`. The lock tool and the script for which it locks
/// are one process here.
fn step_peer(kind: Kind, state: &mut State<At>, process: Process) {
    let (temporary, second) = (Name::Temporary(process as u8), Name::Second(process as u8));
    let Local { at, file, made, .. } = *state.local(process);
    let file = || file.expect("the lock file is open");
    let made = || made.expect("a temporary file is made");
    let next = match at {
        At::Idle => At::PeerCreate,
        At::PeerCreate => {
            state.unlink(temporary);
            let inode: Inode = state.create();
            state.link(inode, temporary);
            state.local_mut(process).made = Some(inode);
            At::PeerWrite
        }
        At::PeerWrite => {
            state.file_mut(made()).record = Record::Foreign(Some(process as u8));
            // Whatever changed before is older than this file.
            if let Some(lock) = state.look_up(Name::Lock) {
                state.file_mut(lock).changed_since &= !(1 << process);
            }
            At::PeerLink
        }
        At::PeerLink if state.look_up(temporary) != Some(made()) => At::PeerDropTemporary { held: false },
        At::PeerLink => match (state.link(made(), Name::Lock), kind) {
            (true, Kind::NetBsd) => At::PeerCheckOwn,
            (true, _) => At::PeerDropTemporary { held: true },
            (false, _) => At::PeerOpen,
        },
        At::PeerOpen => match state.look_up(Name::Lock) {
            None => At::PeerDropTemporary { held: false },
            found => {
                let local = state.local_mut(process);
                local.file = found;
                // NetBSD counts the links here.
                state.local_mut(process).links = state.links(found.expect("just found"));
                At::PeerRead
            }
        },
        At::PeerRead => match state.file(file()).record {
            Record::Blank => At::PeerUnlinkSecond,
            _ => At::PeerKill,
        },
        At::PeerKill => match (state.file(file()).record, kind) {
            (Record::Marked(pid) | Record::Foreign(pid), _) if is_alive(state, pid) => {
                At::PeerDropTemporary { held: false }
            }
            (_, Kind::Peak) => At::PeakUnlinkStale,
            _ => At::PeerUnlinkSecond,
        },
        At::PeakUnlinkStale => {
            state.unlink(Name::Lock);
            At::PeerLink
        }
        At::PeerUnlinkSecond => {
            state.unlink(second);
            At::PeerCountLinks
        }
        At::PeerCountLinks => {
            let links = if kind == Kind::NetBsd { state.local(process).links } else { state.links(file()) };
            let changed = state.file(file()).changed_since & (1 << process) != 0;
            if changed || links != 1 { At::PeerDropTemporary { held: false } } else { At::PeerLinkSecond }
        }
        At::PeerLinkSecond => match state.look_up(Name::Lock) {
            Some(inode) => {
                state.link(inode, second);
                At::PeerLook
            }
            None => At::PeerDropTemporary { held: false },
        },
        At::PeerLook => match state.look_up(Name::Lock) {
            Some(found) if found == file() && state.links(found) == 2 => At::PeerUnlinkStale,
            _ => At::PeerDropSecond { retry: false },
        },
        At::PeerUnlinkStale => {
            state.unlink(Name::Lock);
            At::PeerDropSecond { retry: true }
        }
        At::PeerDropSecond { retry } => {
            state.unlink(second);
            if retry { At::PeerLink } else { At::PeerDropTemporary { held: false } }
        }
        At::PeerCheckOwn => At::PeerDropTemporary { held: state.links(made()) == 2 },
        At::PeerDropTemporary { held } => {
            state.unlink(temporary);
            state.local_mut(process).file = None;
            state.local_mut(process).links = 0;
            if !held {
                state.local_mut(process).made = None;
            }
            if held { At::Held } else { At::Idle }
        }
        At::Held => At::PeerUnlinkHeld,
        At::PeerUnlinkHeld => {
            if state.look_up(Name::Lock) == state.local(process).made {
                state.unlink(Name::Lock);
            }
            state.local_mut(process).made = None;
            At::Idle
        }
        other => unreachable!("{other:?} is ours, or nobody's"),
    };
    state.local_mut(process).at = next;
}
