//! The state of the model: one directory, its inodes, and the processes that use it.

/// The highest number of processes in a model.
pub(crate) const PROCESSES: usize = 4;

/// The highest number of inodes that the processes use at the same time.
const INODES: usize = 9;

/// The highest number of links that dead peers can leave on the files that matter.
const LEFTOVERS: usize = 2;

pub(crate) type Process = usize;
pub(crate) type Inode = u8;

/// The record in a lock file. The PID is `None` if no process can have it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) enum Record {
    #[default]
    Blank,
    /// The record has our mark: the holder keeps an flock.
    Marked(Option<u8>),
    /// The record has only the PID.
    Foreign(Option<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct File {
    pub(crate) record: Record,
    /// The process that has it locked with LOCK_EX.
    pub(crate) locked_by: Option<u8>,
    /// The processes that have it locked with LOCK_SH, one bit for each.
    pub(crate) shared_by: u8,
    /// The peers whose temporary file is older than the last change of this file, one bit for each.
    pub(crate) changed_since: u8,
    /// Whether it last changed more than thirty seconds ago.
    pub(crate) is_old: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    Lock,
    /// Our breakers' private name for the stale file. All our processes use the same name.
    Breaking,
    /// Our private name for a new file before it is the lock, where a file cannot be without a name. All our processes
    /// use the same name.
    Creating,
    /// A peer's `shlock<pid>`.
    Temporary(u8),
    /// A peer's `shlock<pid>x` (INN) or `shlock<pid>-2` (NetBSD).
    Second(u8),
    /// Leftover links of peers: their names contain PIDs that no process has any more.
    Leftover,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Local<At> {
    pub(crate) at: At,
    /// The open or remembered lock file.
    pub(crate) file: Option<Inode>,
    /// The file that it has created, perhaps the one with which it holds the lock.
    pub(crate) created: Option<Inode>,
    /// The open private file of another process.
    pub(crate) private: Option<Inode>,
    /// The link count that it has read.
    pub(crate) links: u8,
    /// Whether it has seen that the stale file is also called [`Name::Breaking`].
    pub(crate) is_linked: bool,
    /// Whether it has seen that the stale file is also called [`Name::Creating`].
    pub(crate) has_creating_name: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State<At> {
    lock: Option<Inode>,
    breaking: Option<Inode>,
    creating: Option<Inode>,
    temporary: [Option<Inode>; PROCESSES],
    second: [Option<Inode>; PROCESSES],
    /// Leftover links of peers: their names contain PIDs that no process has any more.
    leftovers: [Option<Inode>; LEFTOVERS],
    files: [File; INODES],
    pub(crate) processes: [Option<Local<At>>; PROCESSES],
}

impl<At: Copy> State<At> {
    pub(crate) fn new(at: impl Iterator<Item = At>) -> Self {
        let mut processes = [const { None }; PROCESSES];
        for (place, at) in processes.iter_mut().zip(at) {
            let (file, created, private) = (None, None, None);
            let (links, is_linked, has_creating_name) = (0, false, false);
            *place = Some(Local { at, file, created, private, links, is_linked, has_creating_name });
        }
        let none = [None; PROCESSES];
        Self {
            lock: None,
            breaking: None,
            creating: None,
            temporary: none,
            second: none,
            leftovers: [None; LEFTOVERS],
            files: Default::default(),
            processes,
        }
    }

    pub(crate) fn local(&self, process: Process) -> &Local<At> {
        self.processes[process].as_ref().expect("the process takes part")
    }

    pub(crate) fn local_mut(&mut self, process: Process) -> &mut Local<At> {
        self.processes[process].as_mut().expect("the process takes part")
    }

    /// The lock file that the process has open.
    pub(crate) fn open(&self, process: Process) -> Inode {
        self.local(process).file.expect("the lock file is open")
    }

    /// The file that the process has created.
    pub(crate) fn created(&self, process: Process) -> Inode {
        self.local(process).created.expect("the process has created a file")
    }

    /// The private file of another process that this process has open.
    pub(crate) fn private(&self, process: Process) -> Inode {
        self.local(process).private.expect("a private file is open")
    }

    fn slot(&mut self, name: Name) -> &mut Option<Inode> {
        match name {
            Name::Lock => &mut self.lock,
            Name::Breaking => &mut self.breaking,
            Name::Creating => &mut self.creating,
            Name::Temporary(process) => &mut self.temporary[process as usize],
            Name::Second(process) => &mut self.second[process as usize],
            Name::Leftover => unreachable!("no process creates or removes one by its name"),
        }
    }

    /// stat(2), open(2).
    pub(crate) fn look_up(&self, name: Name) -> Option<Inode> {
        match name {
            Name::Lock => self.lock,
            Name::Breaking => self.breaking,
            Name::Creating => self.creating,
            Name::Temporary(process) => self.temporary[process as usize],
            Name::Second(process) => self.second[process as usize],
            Name::Leftover => unreachable!("there may be several"),
        }
    }

    pub(crate) fn file(&self, inode: Inode) -> &File {
        &self.files[inode as usize]
    }

    pub(crate) fn file_mut(&mut self, inode: Inode) -> &mut File {
        &mut self.files[inode as usize]
    }

    /// A fresh inode without a name.
    pub(crate) fn create(&mut self) -> Inode {
        let is_free = |inode: &Inode| self.references().all(|used| used != *inode);
        let free = (0..INODES as Inode).find(is_free).expect("the model has enough inodes");
        self.files[free as usize] = File::default();
        free
    }

    /// link(2); `false` is EEXIST.
    pub(crate) fn link(&mut self, inode: Inode, name: Name) -> bool {
        if self.look_up(name).is_some() {
            return false;
        }
        *self.slot(name) = Some(inode);
        self.touch(inode);
        true
    }

    /// unlink(2).
    pub(crate) fn unlink(&mut self, name: Name) {
        if let Some(inode) = self.slot(name).take() {
            self.touch(inode);
        }
    }

    /// Whether the file has this name.
    pub(crate) fn has_name(&self, inode: Inode, name: Name) -> bool {
        match name {
            Name::Leftover => self.leftovers.contains(&Some(inode)),
            name => self.look_up(name) == Some(inode),
        }
    }

    /// Removes the leftover links on a file.
    pub(crate) fn remove_leftovers(&mut self, inode: Inode) {
        for name in self.leftovers.iter_mut().filter(|name| **name == Some(inode)) {
            *name = None;
        }
        self.touch(inode);
    }

    /// The PID of a dead process will not be used again. Returns `false` if the model has no room for its leftovers.
    pub(crate) fn retire(&mut self, process: Process) -> bool {
        for file in &mut self.files {
            match &mut file.record {
                Record::Marked(pid) | Record::Foreign(pid) if *pid == Some(process as u8) => *pid = None,
                _ => {}
            }
        }
        for left in [self.temporary[process].take(), self.second[process].take()] {
            // A file that no process can reach in another way does not matter.
            if left.is_some_and(|left| self.references().any(|used| used == left)) {
                match self.leftovers.iter_mut().find(|place| place.is_none()) {
                    Some(place) => *place = left,
                    None => return false,
                }
            }
        }
        true
    }

    /// The inode's ctime is now.
    fn touch(&mut self, inode: Inode) {
        let file = self.file_mut(inode);
        (file.changed_since, file.is_old) = (u8::MAX, false);
    }

    pub(crate) fn links(&self, inode: Inode) -> u8 {
        self.names().filter(|&found| found == Some(inode)).count() as u8
    }

    /// flock(2) with LOCK_EX | LOCK_NB.
    pub(crate) fn try_lock(&mut self, process: Process, inode: Inode) -> bool {
        let file = self.file_mut(inode);
        let is_free = file.locked_by.is_none() && file.shared_by == 0;
        if is_free {
            file.locked_by = Some(process as u8);
        }
        is_free
    }

    /// flock(2) with LOCK_SH | LOCK_NB.
    pub(crate) fn try_share(&mut self, process: Process, inode: Inode) -> bool {
        let file = self.file_mut(inode);
        if file.locked_by.is_none() {
            file.shared_by |= 1 << process;
        }
        file.locked_by.is_none()
    }

    /// flock(2) with LOCK_UN.
    pub(crate) fn unlock(&mut self, process: Process, inode: Inode) {
        let file = self.file_mut(inode);
        file.shared_by &= !(1 << process);
        file.locked_by = file.locked_by.filter(|&by| by != process as u8);
    }

    /// The kernel closes what the process has open.
    pub(crate) fn close_all(&mut self, process: Process) {
        for inode in 0..INODES as u8 {
            self.unlock(process, inode);
        }
        let local = self.local_mut(process);
        (local.file, local.created, local.private) = (None, None, None);
        (local.links, local.is_linked, local.has_creating_name) = (0, false, false);
    }

    /// The same state with new numbers for the processes: `order` lists the old numbers in the new order.
    pub(crate) fn reordered(&self, order: [Process; PROCESSES]) -> Self {
        let mut number = [0; PROCESSES];
        order.iter().enumerate().for_each(|(new, &old)| number[old] = new as u8);
        let renumber = |process: Option<u8>| process.map(|process| number[process as usize]);
        let renumber_all = |bits: u8| {
            (0..PROCESSES)
                .filter(|process| bits & 1 << process != 0)
                .fold(0, |bits, process| bits | 1 << number[process])
        };
        let mut reordered = *self;
        reordered.processes = order.map(|old| self.processes[old]);
        reordered.temporary = order.map(|old| self.temporary[old]);
        reordered.second = order.map(|old| self.second[old]);
        for file in &mut reordered.files {
            match &mut file.record {
                Record::Marked(pid) | Record::Foreign(pid) => *pid = renumber(*pid),
                Record::Blank => {}
            }
            file.locked_by = renumber(file.locked_by);
            file.shared_by = renumber_all(file.shared_by);
            file.changed_since = renumber_all(file.changed_since);
        }
        reordered
    }

    fn names(&self) -> impl Iterator<Item = Option<Inode>> {
        [self.lock, self.breaking, self.creating]
            .into_iter()
            .chain(self.temporary)
            .chain(self.second)
            .chain(self.leftovers)
    }

    fn references(&self) -> impl Iterator<Item = Inode> {
        let open = self.processes.iter().flatten().flat_map(|local| [local.file, local.created, local.private]);
        self.names().chain(open).flatten()
    }

    /// Maps states to one state if they differ only in the numbers of the inodes, or in information that no process
    /// will read. `compares_ages` says at which positions it matters whether a file has changed.
    pub(crate) fn normal(&self, compares_ages: impl Fn(At) -> bool) -> Self {
        let mut number = [None; INODES];
        let mut files = [File::default(); INODES];
        let mut next = 0;
        let asks = |process: Process| self.processes[process].is_some_and(|local| compares_ages(local.at));
        let asking = (0..PROCESSES).filter(|&process| asks(process)).fold(0, |bits, process| bits | 1 << process);
        for inode in self.references() {
            if number[inode as usize].is_none() {
                number[inode as usize] = Some(next);
                files[next as usize] = self.files[inode as usize];
                files[next as usize].changed_since &= asking;
                files[next as usize].is_old &= self.lock == Some(inode);
                next += 1;
            }
        }
        let renumber = |inode: Option<Inode>| inode.and_then(|inode| number[inode as usize]);
        let mut normal = Self { files, ..*self };
        (normal.lock, normal.breaking, normal.creating) =
            (renumber(self.lock), renumber(self.breaking), renumber(self.creating));
        (normal.temporary, normal.second) = (self.temporary.map(renumber), self.second.map(renumber));
        normal.leftovers = self.leftovers.map(renumber);
        normal.leftovers.sort_unstable();
        for local in normal.processes.iter_mut().flatten() {
            (local.file, local.created, local.private) =
                (renumber(local.file), renumber(local.created), renumber(local.private));
        }
        normal
    }
}
