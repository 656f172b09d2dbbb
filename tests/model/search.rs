//! Finds every reachable state, and the states from which a process can still obtain the lock.
//!
//! A state is remembered by its fingerprint of 128 bits, because the large models would not fit into memory. Two states with
//! the same fingerprint would count as one. With a hundred million states, the probability of that is below 10⁻²².

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::protocol::{At, Chance, Model};
use super::state::{PROCESSES, Process, State};

/// The result of the search through a model.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) states: usize,
    /// The steps to the first state with two holders, or with a holder that has lost its name: each process and its new
    /// position.
    pub(crate) violation: Option<Vec<(Process, At)>>,
    /// The number of states from which no process can get the lock any more, if there is no other crash.
    pub(crate) stuck: usize,
}

impl Model {
    /// Searches breadth first, until it finds a violation or has seen all states.
    pub(crate) fn search(&self) -> Found {
        let start = self.normal(&self.start());
        // The number of each state.
        let mut seen = HashMap::from([(fingerprint(&start), 0_u32)]);
        let mut parents = vec![0_u32];
        // The events that will happen at some time, backwards: (to, from).
        let mut edges = Vec::new();
        let mut holding = Vec::new();
        let (mut level, mut number) = (vec![start], 0_u32);
        while !level.is_empty() {
            for state in std::mem::take(&mut level) {
                if self.is_violated(&state) {
                    let violation = Some(self.path(&seen, &parents, number as usize));
                    return Found { states: seen.len(), violation, stuck: 0 };
                }
                if state.processes.iter().flatten().any(|local| local.at.is_held()) {
                    holding.push(number);
                }
                for (successor, chance) in self.successors(&state) {
                    let successor = self.normal(&successor);
                    let next = parents.len() as u32;
                    let to = match seen.entry(fingerprint(&successor)) {
                        Entry::Occupied(old) => *old.get(),
                        Entry::Vacant(new) => {
                            parents.push(number);
                            level.push(successor);
                            *new.insert(next)
                        }
                    };
                    if chance == Chance::Course {
                        edges.push((to, number));
                    }
                }
                number += 1;
            }
        }
        Found { states: seen.len(), violation: None, stuck: stuck(seen.len(), edges, holding) }
    }

    /// The steps that lead to a state. The numbers of the processes can change at each step.
    fn path(&self, seen: &HashMap<u128, u32>, parents: &[u32], number: usize) -> Vec<(Process, At)> {
        let mut numbers: Vec<usize> =
            std::iter::successors(Some(number), |&at| (at != 0).then(|| parents[at] as usize)).collect();
        numbers.reverse();
        let (mut steps, mut state) = (Vec::new(), self.normal(&self.start()));
        for &number in &numbers[1..] {
            let mut successors = self.successors(&state).into_iter();
            let (after, _) = successors
                .find(|(after, _)| seen.get(&fingerprint(&self.normal(after))) == Some(&(number as u32)))
                .expect("the parent leads to it");
            let before = &state.processes;
            steps.extend((0..PROCESSES).filter_map(|process| {
                let (was, is) = (before[process]?.at, after.processes[process]?.at);
                (was != is).then_some((process, is))
            }));
            state = self.normal(&after);
        }
        steps
    }
}

fn fingerprint(state: &State<At>) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, state).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// How many of the states lead to none of those in which a process holds the lock.
fn stuck(states: usize, mut edges: Vec<(u32, u32)>, holding: Vec<u32>) -> usize {
    edges.sort_unstable();
    let mut can = vec![false; states];
    let mut pending = holding;
    pending.iter().for_each(|&number| can[number as usize] = true);
    while let Some(to) = pending.pop() {
        let first = edges.partition_point(|&(target, _)| target < to);
        for &(_, from) in edges[first..].iter().take_while(|&&(target, _)| target == to) {
            if !std::mem::replace(&mut can[from as usize], true) {
                pending.push(from);
            }
        }
    }
    can.iter().filter(|&&can| !can).count()
}
