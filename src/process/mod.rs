//! Between the tasks of one process: their queue, who holds the lock, and how a held lock passes from task to task.
//!
//! [`lock`] is one handle's view of a lock. [`acquire`] is the way to the lock, [`acquisition`] the way back.

pub(crate) mod acquire;
pub(crate) mod acquisition;
mod atomic_instant;
mod hand_off;
mod hold;
pub(crate) mod limit;
pub(crate) mod lock;
mod queue;
mod readers;
mod registry;
pub(crate) mod report;
mod time_slice;
mod worker;
mod writers_turn;
