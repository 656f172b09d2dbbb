//! One handle's view of a lock: what it names, its engine, and its slot in this process.

use std::hash::{Hash, Hasher};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::hold::Hold;
use super::registry::{Registry, Slot, Turn};
use crate::engine::{self, contract::Engine};
use crate::sys::per_process::PerProcess;
use crate::sys::process;
use crate::util::blocking;
use crate::util::timer::timeout;
use crate::words::error::LockError;
use crate::words::holder::Holder;
use crate::words::kind::LockKind;
use crate::words::target::Target;

/// The slots of this process.
static REGISTRY: PerProcess<Registry<Hold>> = PerProcess::new();

/// Bounds the looks for a holder that nobody but a message needs.
static LOOKS: PerProcess<Semaphore> = PerProcess::new();

/// How many of these looks there are at once. Each takes a thread of the blocking pool.
const LOOKS_AT_ONCE: usize = 2;

/// A look that takes longer does not keep others from theirs: its file system or its server hangs.
const LONG_LOOK: Duration = Duration::from_secs(1);

/// Bounds the looks that take longer: they must not take all threads of the blocking pool.
static LONG_LOOKS: PerProcess<Semaphore> = PerProcess::new();

const LONG_LOOKS_AT_ONCE: usize = 32;

/// Awaits a look, and gives `permit` back at its end, or when it takes long, unless too many do.
pub(super) async fn keeping<F: Future>(permit: impl Sized, mut look: Pin<&mut F>) -> F::Output {
    if let Some(found) = timeout(LONG_LOOK, look.as_mut()).await {
        return found;
    }
    let place = LONG_LOOKS.get_or_init(|| Semaphore::new(LONG_LOOKS_AT_ONCE)).try_acquire();
    let _kept = place.is_err().then_some(permit);
    look.await
}

#[derive(Debug)]
pub(crate) struct Lock {
    pub(super) target: Arc<Target>,
    pub(super) engine: Box<dyn Engine<Turn<Hold>>>,
    slot: PerProcess<Arc<Slot<Hold>>>,
}

impl Lock {
    pub(crate) fn new(target: Target) -> Result<Self, LockError> {
        let target = Arc::new(target);
        let engine = engine::of(&target)?;
        let lock = Self { target, engine, slot: PerProcess::new() };
        lock.slot();
        Ok(lock)
    }

    /// What this process knows of the lock.
    pub(super) fn slot(&self) -> &Arc<Slot<Hold>> {
        self.slot.get_or_init(|| match self.engine.identity() {
            Some(identity) => REGISTRY.get_or_init(Registry::new).slot(self.target.kind, identity),
            None => Slot::unnamed(),
        })
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Whether a task of this process holds the lock.
    pub(crate) fn is_held_here(&self) -> bool {
        self.slot().is_held()
    }

    /// Who holds the lock, for a message to people; `None` if nothing tells. Thousands of waits may ask at the same moment,
    /// so they ask one after another, and one look not older than `freshness` serves all waits for the same lock. `begin` is
    /// called when this one begins.
    pub(super) async fn look_for_holder(
        &self,
        freshness: Duration,
        begin: impl FnOnce(),
    ) -> Result<Option<Holder>, LockError> {
        let permit = LOOKS.get_or_init(|| Semaphore::new(LOOKS_AT_ONCE)).acquire().await;
        if let Some(holder) = self.slot().last_look(freshness) {
            return Ok(holder);
        }
        begin();
        let holder = keeping(permit, pin!(self.holders())).await?.into_iter().next();
        let holder = holder.map(|holder| holder.or_us(self.is_held_here()));
        self.slot().remember_look(holder.clone());
        Ok(holder)
    }

    /// This process, if it holds the lock.
    pub(super) fn holder_here(&self) -> Option<Holder> {
        self.slot().held_since().map(|since| process::this_process(since).or_us(true))
    }

    /// That a look has had no answer, and what has failed last, if anything has.
    pub(super) fn no_answer(&self) -> String {
        let who = if self.target.is_on_server() { "server" } else { "file system" };
        let failure = self.engine.last_failure().map(|failure| format!(": {failure}"));
        format!("the {who} does not answer{}", failure.unwrap_or_default())
    }

    /// Who holds the lock, in any process. More than one if it is shared.
    pub(crate) async fn holders(&self) -> Result<Vec<Holder>, LockError> {
        let here = self.slot().held_since();
        let mut holders = self.engine.holders().await?;
        if self.target.is_on_server() {
            // A server knows all, and a PID says little without its host.
            return Ok(holders);
        }
        let Some(since) = here.filter(|_| self.are_we_missing(&holders)) else { return Ok(holders) };
        let us = blocking::run(move || process::this_process(since)).await;
        let us = us.map_err(|error| self.target.failed("look at", error))?;
        let place = holders.iter().position(|holder| holder.pid() == us.pid() || holder.pid() == 0);
        match place {
            Some(place) => holders[place] = us,
            None => holders.push(us),
        }
        Ok(holders)
    }

    /// Whether we know more of ourselves, who hold the lock, than the engine has found.
    fn are_we_missing(&self, found: &[Holder]) -> bool {
        match found.iter().find(|holder| holder.pid() == std::process::id()) {
            Some(us) => us.since().is_none(),
            // The engine need not know who holds the lock.
            None if self.target.kind == LockKind::Null || found.iter().any(|holder| holder.pid() == 0) => true,
            // Nor that we read. But we may have lost that lock.
            None => self.slot().readers().held().is_some_and(|hold| hold.check(&self.target).is_ok()),
        }
    }
}

/// The same lock, whatever path names it.
impl PartialEq for Lock {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.slot(), other.slot())
    }
}

impl Eq for Lock {}

impl Hash for Lock {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.target.kind, self.slot().identity()).hash(state);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Each of them has a thread of the blocking pool, which others need too.
    #[tokio::test(start_paused = true)]
    async fn looks_that_hang_do_not_pile_up() {
        let (looks, begun) = (Arc::new(Semaphore::new(LOOKS_AT_ONCE)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..600 {
            let (looks, begun) = (Arc::clone(&looks), Arc::clone(&begun));
            tokio::spawn(async move {
                let permit = looks.acquire().await;
                begun.fetch_add(1, Ordering::Relaxed);
                keeping(permit, pin!(pending::<()>())).await;
            });
        }
        tokio::time::sleep(1_000 * LONG_LOOK).await;
        let begun = begun.load(Ordering::Relaxed);
        assert!(begun > LOOKS_AT_ONCE, "the first ones keep all others from theirs");
        assert!(begun <= LOOKS_AT_ONCE + LONG_LOOKS_AT_ONCE, "{begun} looks hang");
    }
}
