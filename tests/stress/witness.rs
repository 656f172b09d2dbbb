//! What happens under the lock: two witnesses that know nothing of locks.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

/// The files of one campaign.
pub(crate) struct Witness {
    dir: PathBuf,
    id: String,
    counter: File,
    log: File,
}

pub(crate) fn condemned(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("condemned.{id}"))
}

pub(crate) fn log(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("log.{id}"))
}

impl Witness {
    pub(crate) fn new(dir: &Path, id: &str) -> Self {
        let counter = File::options().read(true).write(true).open(dir.join("counter")).unwrap();
        let log = File::options().create(true).append(true).open(log(dir, id)).unwrap();
        Self { dir: dir.to_owned(), id: id.to_owned(), counter, log }
    }

    /// Is there alone, or says so if not.
    pub(crate) fn work(&mut self) {
        self.enter();
        self.count();
        let _ = fs::remove_file(self.dir.join("occupied"));
    }

    /// The first witness: a name that only one can make, in one step, with his own name in it.
    fn enter(&self) {
        let place = self.dir.join("occupied");
        while symlink(&self.id, &place).is_err() {
            let Ok(other) = fs::read_link(&place) else { continue };
            // Whoever was killed here could not leave.
            if condemned(&self.dir, &other.to_string_lossy()).exists() {
                let _ = fs::remove_file(&place);
                continue;
            }
            let mut violations = File::options().create(true).append(true).open(self.dir.join("violations")).unwrap();
            writeln!(violations, "{} met {}", self.id, other.display()).unwrap();
            return;
        }
    }

    /// The second: a counter that loses counts if two are at it.
    fn count(&mut self) {
        let mut bytes = [0; 8];
        self.counter.read_exact_at(&mut bytes, 0).unwrap();
        for _ in 0..fastrand::u32(0..200) {
            std::hint::spin_loop();
        }
        let next = u64::from_le_bytes(bytes) + 1;
        self.counter.write_all_at(&next.to_le_bytes(), 0).unwrap();
        self.log.write_all(b".").unwrap();
    }
}
