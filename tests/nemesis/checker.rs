//! Judges a history: what no holder, no token and no wait may do, beside the exceptions that the documentation names.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::{Event, LOCKS, Outcome, Turn, Way};
use crate::schedule::Fault;
use crate::setting::SHORTEST_LEASE;

/// How long the news of a loss may take where nothing delays it. That is a packet's flight, and what a busy machine adds.
const FLIGHT: Duration = Duration::from_secs(1);

/// A machine on which threads wait for longer than this is too busy for the shortest leases.
const HICCUP: Duration = Duration::from_millis(300);

/// When all was whole again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Calm {
    pub(crate) began: Duration,
    /// By now every operation has to succeed.
    pub(crate) healthy: Duration,
    /// For how long a thread of this machine waited for a core since then. Who waits for so long misses a deadline.
    pub(crate) hiccup: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// With the moment of each.
    pub(crate) violations: Vec<(Duration, String)>,
    pub(crate) two_holders: usize,
    pub(crate) tokens_out_of_order: usize,
    /// How often each exception was used, and the longest overlap under it.
    pub(crate) exceptions: BTreeMap<&'static str, (usize, Duration)>,
    pub(crate) turns: BTreeMap<(Way, Outcome), usize>,
    pub(crate) holds: usize,
    pub(crate) tokens: usize,
    /// The longest time in which nobody held a lock that was wanted.
    pub(crate) longest_gap: Duration,
    /// The same after the last fault.
    pub(crate) longest_gap_in_calm: Duration,
    /// How long after the last fault each lock had a holder again.
    pub(crate) healthy_after: Duration,
}

/// `calm`: not as long as there are faults. `locks`: those that the clients want.
pub(crate) fn judge(turns: &[Turn], events: &[Event], calm: Option<Calm>, locks: usize) -> Verdict {
    let mut verdict = Verdict::default();
    for turn in turns {
        *verdict.turns.entry((turn.way, turn.outcome)).or_default() += 1;
        verdict.one_turn(turn, calm);
    }
    for lock in 0..locks {
        let mut holds: Vec<&Turn> = turns.iter().filter(|turn| turn.lock == lock && turn.has_held()).collect();
        holds.sort_by_key(|hold| hold.first);
        verdict.holds += holds.len();
        verdict.overlaps(&holds, events);
        verdict.tokens(&holds, events);
        verdict.gaps(lock, &holds, calm);
    }
    if let Some(calm) = calm.filter(|calm| calm.hiccup < HICCUP) {
        verdict.failures(turns, calm);
    }
    verdict.violations.sort();
    verdict
}

impl Verdict {
    fn one_turn(&mut self, turn: &Turn, calm: Option<Calm>) {
        let is_late = calm.is_some_and(|calm| turn.first > calm.healthy && calm.hiccup < HICCUP);
        let fault = match turn.outcome {
            Outcome::Untold => "a loss that nobody tells",
            Outcome::Unlost => "a lock that is lost and held at the same time",
            Outcome::Lost if is_late => "a loss although nothing is broken",
            _ => return,
        };
        self.violations.push((turn.ended, format!("{fault}: {turn:?}")));
    }

    /// A busy machine may fail sometimes, but not most of the time.
    fn failures(&mut self, turns: &[Turn], calm: Calm) {
        let mut by_client = BTreeMap::<usize, (usize, usize)>::new();
        for turn in turns.iter().filter(|turn| turn.called > calm.healthy && !turn.ended.is_zero()) {
            let (failed, all) = by_client.entry(turn.client).or_default();
            *failed += usize::from(matches!(turn.outcome, Outcome::Failed | Outcome::ReleaseFailed));
            *all += 1;
        }
        for (client, (failed, all)) in by_client.into_iter().filter(|(_, (failed, all))| failed * 2 > *all) {
            let text = format!("{failed} of {all} operations of client {client} fail although nothing is broken");
            self.violations.push((calm.healthy, text));
        }
    }

    fn overlaps(&mut self, holds: &[&Turn], events: &[Event]) {
        for (number, hold) in holds.iter().enumerate() {
            for next in holds[number + 1..].iter().take_while(|next| next.first < hold.last) {
                let (began, ended) = (next.first, hold.last.min(next.last));
                if began >= ended || hold.is_shared && next.is_shared {
                    continue;
                }
                let overlap = ended - began;
                match excuse(hold, began, ended, events).or_else(|| excuse(next, began, ended, events)) {
                    Some(name) => {
                        let (count, longest) = self.exceptions.entry(name).or_default();
                        (*count, *longest) = (*count + 1, overlap.max(*longest));
                    }
                    None => {
                        let near = |event: &&Event| event.began < ended && event.ended + next.lease > began;
                        let near: Vec<&Event> = events.iter().filter(near).collect();
                        self.two_holders += 1;
                        let text = format!("two holders for {overlap:?}: {hold:?} and {next:?}, {near:#?}");
                        self.violations.push((began, text));
                    }
                }
            }
        }
    }

    /// A token is higher than those of all holds before it that exclude it. Within a process, a lock is handed on.
    fn tokens(&mut self, holds: &[&Turn], events: &[Event]) {
        for (number, hold) in holds.iter().enumerate().filter(|(_, hold)| hold.token > 0) {
            self.tokens += 1;
            for former in holds[..number].iter().filter(|former| former.last < hold.first) {
                let excludes = !(former.is_shared && hold.is_shared);
                let is_handed_on = former.process == hold.process && former.token == hold.token;
                if excludes && former.token >= hold.token && !is_handed_on {
                    if events.iter().any(|event| is_of_old_primary(event, former.first, hold)) {
                        self.exceptions.entry(OLD_PRIMARY).or_default().0 += 1;
                        continue;
                    }
                    if events.iter().any(|event| is_paused(event, hold, hold.first)) {
                        self.exceptions.entry(PAUSED).or_default().0 += 1;
                        continue;
                    }
                    // As two holders at once: the answer that gave it the lock was underway when the lock was freed.
                    if let Some(name) = excuse(hold, former.first, hold.last, events) {
                        self.exceptions.entry(name).or_default().0 += 1;
                        continue;
                    }
                    self.tokens_out_of_order += 1;
                    let near = |event: &&Event| event.began < hold.last && event.ended + hold.lease > former.first;
                    let near: Vec<&Event> = events.iter().filter(near).collect();
                    let text = format!("a token that does not grow: {former:?} and {hold:?}, {near:#?}");
                    self.violations.push((hold.first, text));
                }
            }
        }
    }

    fn gaps(&mut self, lock: usize, holds: &[&Turn], calm: Option<Calm>) {
        let (mut free_since, mut first_in_calm) = (None, None);
        for hold in holds {
            if let Some(since) = free_since {
                // The singletons always want their lock.
                let wanted = if hold.way == Way::Lead { since } else { hold.called.max(since) };
                let gap = hold.first.saturating_sub(wanted);
                self.longest_gap = self.longest_gap.max(gap);
                if calm.is_some_and(|calm| since > calm.healthy) {
                    self.longest_gap_in_calm = self.longest_gap_in_calm.max(gap);
                }
            }
            free_since = free_since.max(Some(hold.last));
            if calm.is_some_and(|calm| hold.first > calm.began) && first_in_calm.is_none() {
                first_in_calm = Some(hold.first);
            }
        }
        let Some(calm) = calm else { return };
        match first_in_calm {
            Some(first) if first < calm.healthy => self.healthy_after = self.healthy_after.max(first - calm.began),
            _ => {
                let text = format!("nobody gets {} after the last fault", LOCKS[lock]);
                self.violations.push((calm.healthy, text));
            }
        }
    }
}

/// A documented exception: its name where the news of a loss travels freely, and where it does not.
type Exception = [&'static str; 2];

const ADMINISTRATOR: Exception = ["an administrator", "an administrator, in a partition"];
const RESTART: Exception = ["a restart", "a restart, in a partition"];
const RESTART_BETWEEN: Exception = ["a restart between", "a restart between, in a partition"];
const LEADER: Exception = ["a leader that stood still", "a leader that stood still, in a partition"];
const OLD_PRIMARY: &str = "an old primary that still answers";
const PAUSED: &str = "a paused process";

/// Between which moments a fault may free a lock whose holder does not know.
fn frees(event: &Event, lock: usize) -> Option<(Exception, Duration, Duration)> {
    let (began, done, ended) = (event.began, event.done, event.ended);
    match event.fault {
        Fault::Terminate | Fault::DeleteKey if event.hit.what != LOCKS[lock] => None,
        Fault::Terminate | Fault::DeleteKey | Fault::RevokeLease | Fault::RevokeRole => {
            Some((ADMINISTRATOR, began, done))
        }
        Fault::RestartServer | Fault::CrashServer | Fault::FailOver => Some((RESTART, began, done)),
        Fault::FillDisk => Some((RESTART, began, ended)),
        Fault::KillProxy => Some((RESTART_BETWEEN, began, done)),
        // When it goes on, it ends the leases that its successor keeps.
        Fault::StopMember | Fault::HangDisk if ended - began > SHORTEST_LEASE => Some((LEADER, ended, ended + FLIGHT)),
        _ => None,
    }
}

/// Whether `old` may have got its lock from an old primary after `from`, when the new one was there too.
fn is_of_old_primary(event: &Event, from: Duration, old: &Turn) -> bool {
    event.fault == Fault::PromoteBeside && from > event.began && old.called < event.ended
}

/// The exception by which `old` may still seem to hold a lock that somebody else has between these moments.
fn excuse(old: &Turn, began: Duration, ended: Duration, events: &[Event]) -> Option<&'static str> {
    for event in events {
        if is_of_old_primary(event, began, old) && ended < event.ended + old.lease {
            return Some(OLD_PRIMARY);
        }
        let Some((names, from, until)) = frees(event, old.lock) else { continue };
        let is_unheard = |other: &&Event| other.began < ended && other.ended + FLIGHT > from;
        let is_unheard = events.iter().filter(is_unheard).any(|other| other.hit.reach.concerns(old.client));
        let flight = if is_unheard { old.lease } else { FLIGHT };
        // It was held when it was freed, or the answer was underway, and somebody else got it since then.
        if old.first > until + flight || began < from {
            continue;
        }
        if ended < until + FLIGHT && ended - began < FLIGHT {
            return Some(names[0]);
        }
        if is_unheard && ended < until + old.lease {
            return Some(names[1]);
        }
    }
    let is_paused = ended - began < FLIGHT && events.iter().any(|event| is_paused(event, old, began));
    is_paused.then_some(PAUSED)
}

/// Whether a singleton may still say that it leads, or begin its work, because its process was stopped. That is so until its
/// runtime has run.
fn is_paused(event: &Event, turn: &Turn, moment: Duration) -> bool {
    let is_stop = event.fault == Fault::StopClient && event.hit.reach.concerns(turn.client);
    turn.way == Way::Lead && is_stop && (event.began..event.ended + FLIGHT).contains(&moment)
}
