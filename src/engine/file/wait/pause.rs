//! The sleep of a wait between two tries: until an event where the system tells of changes, else for a pause.

use std::time::Duration;

use super::events::Watch;
use super::wake_up::WakeUp;
use crate::engine::file::execution::TargetOnDisk;
use crate::engine::file::outcome::Contended;
use crate::util::backoff::Backoff;
use crate::util::timer::{sleep, timeout};

/// When to look again after an event that found the lock still taken. The kernel closes the files of a dying holder,
/// which is the event, a moment before it frees its locks.
const AFTER_EVENT: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(20)];

/// Ten thousand waits must cost little. A future is as large as the largest of its states, so what a wait seldom needs
/// is boxed.
pub(super) struct Pause {
    watch: Option<Watch>,
    /// How many looks there were since the last event. All of [`AFTER_EVENT`] when there was none.
    looks: usize,
    backoff: Backoff,
}

impl Pause {
    pub(super) fn new(lock: &TargetOnDisk) -> Self {
        Self { watch: None, looks: AFTER_EVENT.len(), backoff: Backoff::new(lock.target.options.backoff) }
    }

    /// Returns when the lock may be free. It watches before the try that its return asks for, and sleeps after it: so no
    /// release falls between the two.
    pub(super) async fn next(&mut self, lock: &TargetOnDisk, contended: &Contended) -> WakeUp {
        let Some(file) = contended.file().filter(|_| lock.has_events()) else {
            self.watch = None;
            sleep(self.backoff.next()).await;
            return WakeUp::Probe;
        };
        match &mut self.watch {
            Some(watch) if watch.is_on(file, contended.foreign) => {
                let wake_up = match AFTER_EVENT.get(self.looks) {
                    Some(&delay) => timeout(delay, Box::pin(watch.wake_up()).as_mut()).await,
                    None => Some(watch.wake_up().await),
                };
                match wake_up {
                    Some(WakeUp::Event) => self.looks = 0,
                    Some(WakeUp::Probe) => {}
                    None => self.looks += 1,
                }
                wake_up.unwrap_or(WakeUp::Probe)
            }
            _ => {
                self.watch = Watch::for_release(lock.target.kind, file, contended.foreign);
                match &self.watch {
                    // The caller tries once more: the lock may have been released before the watch was there.
                    Some(_) => self.looks = AFTER_EVENT.len(),
                    None => sleep(self.backoff.next()).await,
                }
                WakeUp::Probe
            }
        }
    }
}
