//! The directory of one campaign, which all its processes share, and the two witnesses in it.
//!
//! Every process that is started is an *instance*: it has its own number, and a row in the file `rows`. The row keeps
//! what the instance wrote, also after the instance is killed.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};

pub(crate) struct Arena {
    dir: PathBuf,
    rows: File,
    counter: File,
}

/// The fields of an instance's row, in their order.
#[derive(Clone, Copy)]
enum Field {
    /// Written by the supervisor just before it kills the instance.
    Condemned,
    Acquired,
    /// 1 while an acquisition is not in `Acquired` yet, and it is not known whether the counter was incremented for it.
    Undecided,
    Takeovers,
    Violations,
    /// 1 once the instance has started its work.
    Ready,
    Reads,
}

const ROW: u64 = 64;

/// What an instance has observed.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) acquired: u64,
    pub(crate) undecided: u64,
    pub(crate) takeovers: u64,
    pub(crate) violations: u64,
    pub(crate) reads: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.acquired += other.acquired;
        self.undecided += other.undecided;
        self.takeovers += other.takeovers;
        self.violations += other.violations;
        self.reads += other.reads;
    }
}

impl Arena {
    /// Sets up a fresh directory.
    pub(crate) fn create(dir: &Path) -> Self {
        std::fs::create_dir(dir.join("locks")).unwrap();
        std::fs::create_dir(dir.join("readers")).unwrap();
        std::fs::write(dir.join("counter"), [0; 8]).unwrap();
        std::fs::write(dir.join("rows"), []).unwrap();
        let arena = Self::open(dir);
        arena.write(0, Field::Acquired, std::process::id().into());
        arena
    }

    pub(crate) fn open(dir: &Path) -> Self {
        let open = |name| File::options().read(true).write(true).open(dir.join(name)).unwrap();
        Self { dir: dir.to_owned(), rows: open("rows"), counter: open("counter") }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lock that the instances compete for. Its directory contains nothing else.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("locks/x.lock")
    }

    /// Tells all instances to end. Row 0 is the supervisor's.
    pub(crate) fn end(&self) {
        self.write(0, Field::Condemned, 1);
    }

    /// Whether the instances must end: the supervisor has told them to, or it no longer exists.
    pub(crate) fn is_over(&self) -> bool {
        let supervisor = i32::try_from(self.read(0, Field::Acquired)).ok().and_then(Pid::from_raw).unwrap();
        self.read(0, Field::Condemned) == 1 || test_kill_process(supervisor).is_err()
    }

    pub(crate) fn condemn(&self, instance: u64) {
        self.write(instance, Field::Condemned, 1);
    }

    /// Whether the instance has finished its start.
    pub(crate) fn is_ready(&self, instance: u64) -> bool {
        self.read(instance, Field::Ready) == 1
    }

    /// The instance whose marker exists now.
    pub(crate) fn marked(&self) -> Option<u64> {
        let number = std::fs::read_link(self.marker()).ok()?;
        Some(number.to_str().unwrap().parse().unwrap())
    }

    /// The directory with the markers of those who read.
    fn readers(&self) -> PathBuf {
        self.dir.join("readers")
    }

    fn marker(&self) -> PathBuf {
        self.dir.join("marker")
    }

    /// Of an instance and its children.
    pub(crate) fn tally(&self, instance: u64) -> Tally {
        let mut tally = self.own_tally(instance);
        children(instance).take_while(|&child| self.is_ready(child)).for_each(|child| tally += self.own_tally(child));
        tally
    }

    fn own_tally(&self, instance: u64) -> Tally {
        Tally {
            acquired: self.read(instance, Field::Acquired),
            undecided: self.read(instance, Field::Undecided),
            takeovers: self.read(instance, Field::Takeovers),
            violations: self.read(instance, Field::Violations),
            reads: self.read(instance, Field::Reads),
        }
    }

    pub(crate) fn counter(&self) -> u64 {
        read_u64(&self.counter, 0)
    }

    fn read(&self, instance: u64, field: Field) -> u64 {
        read_u64(&self.rows, instance * ROW + field as u64 * 8)
    }

    fn write(&self, instance: u64, field: Field, value: u64) {
        self.rows.write_all_at(&value.to_le_bytes(), instance * ROW + field as u64 * 8).unwrap();
    }
}

/// The number at this offset; 0 past the end of the file.
fn read_u64(file: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    let _ = file.read_at(&mut bytes, offset).unwrap();
    u64::from_le_bytes(bytes)
}

/// One process's part in the arena.
pub(crate) struct Instance {
    pub(crate) arena: Arena,
    pub(crate) number: u64,
    /// How many children it has forked.
    pub(crate) children: AtomicU64,
}

/// The numbers of forked children begin here.
const FIRST_CHILD: u64 = 1_000_000;

/// The highest number of children that one instance forks.
const CHILDREN: u64 = 1_000;

/// The children that an instance can have.
fn children(parent: u64) -> impl Iterator<Item = u64> {
    (0..CHILDREN).map(move |number| FIRST_CHILD + parent * CHILDREN + number)
}

/// The instance with whose process group an instance is killed.
fn leader(number: u64) -> u64 {
    if number < FIRST_CHILD { number } else { (number - FIRST_CHILD) / CHILDREN }
}

impl Instance {
    /// The number of the next child that this instance forks. A child forks none.
    pub(crate) fn next_child(&self) -> Option<u64> {
        let next = self.children.fetch_add(1, Ordering::Relaxed);
        (self.number < FIRST_CHILD).then(|| children(self.number).nth(next as usize)).flatten()
    }

    /// Tells the supervisor that the work begins.
    pub(crate) fn begin(&self) {
        self.arena.write(self.number, Field::Ready, 1);
    }

    /// The critical section under the lock. Both witnesses check it.
    pub(crate) async fn section(&self) {
        let marked = self.enter();
        self.look_for_readers();
        let count = self.arena.counter();
        let acquired = self.arena.read(self.number, Field::Acquired);
        dawdle().await;
        self.arena.write(self.number, Field::Undecided, 1);
        self.arena.counter.write_all_at(&(count + 1).to_le_bytes(), 0).unwrap();
        // `Acquired` and `Undecided` are next to each other: one write sets both, so a kill cannot come between.
        let decided = [(acquired + 1).to_le_bytes(), [0; 8]].concat();
        self.arena.rows.write_all_at(&decided, self.number * ROW + Field::Acquired as u64 * 8).unwrap();
        dawdle().await;
        self.look_for_readers();
        if marked {
            self.leave();
        }
    }

    /// The critical section under a shared lock. No writer may be there, and none may write meanwhile.
    pub(crate) async fn reading(&self) {
        let marker = self.arena.readers().join(format!("{}-{}", self.number, fastrand::u64(..)));
        symlink(self.number.to_string(), &marker).unwrap();
        self.look_for_a_writer();
        let count = self.arena.counter();
        dawdle().await;
        dawdle().await;
        if self.arena.counter() != count {
            self.violation();
        }
        self.look_for_a_writer();
        std::fs::remove_file(&marker).unwrap();
        self.count(Field::Reads);
    }

    fn look_for_a_writer(&self) {
        // The next writer removes the marker of a killed one.
        if self.arena.marked().is_some_and(|writer| self.arena.read(writer, Field::Condemned) == 0) {
            self.violation();
        }
    }

    /// Removes the markers of killed readers.
    fn look_for_readers(&self) {
        for marker in std::fs::read_dir(self.arena.readers()).unwrap() {
            let marker = marker.unwrap().path();
            let reader = std::fs::read_link(&marker).ok().map(|number| number.to_str().unwrap().parse().unwrap());
            match reader {
                Some(reader) if self.arena.read(reader, Field::Condemned) == 1 => _ = std::fs::remove_file(marker),
                _ => self.violation(),
            }
        }
    }

    /// Counts an event that shows that another process held the lock at the same time.
    pub(crate) fn violation(&self) {
        self.count(Field::Violations);
    }

    /// Creates the marker. It is a symbolic link, because a link and its content, the instance's number, appear
    /// together. Returns whether the marker was created.
    fn enter(&self) -> bool {
        let marker = self.arena.marker();
        loop {
            match symlink(self.number.to_string(), &marker) {
                Ok(()) => return true,
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
            }
            match self.arena.marked() {
                Some(other) if self.arena.read(leader(other), Field::Condemned) == 1 => {
                    self.count(Field::Takeovers);
                    if std::fs::remove_file(&marker).is_err() {
                        self.violation();
                    }
                }
                // Another instance is in the critical section, or was until now.
                Some(_) => {
                    self.violation();
                    return false;
                }
                None => self.violation(),
            }
        }
    }

    fn leave(&self) {
        if self.arena.marked() != Some(self.number) || std::fs::remove_file(self.arena.marker()).is_err() {
            self.violation();
        }
    }

    fn count(&self, field: Field) {
        self.arena.write(self.number, field, self.arena.read(self.number, field) + 1);
    }
}

/// At random: lets some time pass, or lets another task run, or does nothing.
async fn dawdle() {
    match fastrand::u8(..4) {
        0 => std::thread::sleep(Duration::from_micros(fastrand::u64(..100))),
        1 => tokio::task::yield_now().await,
        _ => {}
    }
}
