//! Finds every reachable state, and the states from which a process can still obtain the lock.

use indexmap::IndexSet;

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
        let mut states = IndexSet::from([start]);
        let mut parents = vec![0_u32];
        // The events that will happen at some time, backwards: (to, from).
        let mut edges = Vec::new();
        let mut next = 0;
        while next < states.len() {
            let state = states[next];
            if self.is_violated(&state) {
                return Found { states: states.len(), violation: Some(self.path(&states, &parents, next)), stuck: 0 };
            }
            for (successor, chance) in self.successors(&state) {
                let (number, is_new) = states.insert_full(self.normal(&successor));
                if is_new {
                    parents.push(next as u32);
                }
                if chance == Chance::Course {
                    edges.push((number as u32, next as u32));
                }
            }
            next += 1;
        }
        Found { states: states.len(), violation: None, stuck: stuck(&states, edges) }
    }

    /// The steps that lead to a state. The numbers of the processes can change at each step.
    fn path(&self, states: &IndexSet<State<At>>, parents: &[u32], mut number: usize) -> Vec<(Process, At)> {
        let mut steps = Vec::new();
        while number != 0 {
            let parent = parents[number] as usize;
            let mut successors = self.successors(&states[parent]).into_iter();
            let (after, _) =
                successors.find(|(after, _)| self.normal(after) == states[number]).expect("the parent leads to it");
            let before = &states[parent].processes;
            steps.extend((0..PROCESSES).filter_map(|process| {
                let (was, is) = (before[process]?.at, after.processes[process]?.at);
                (was != is).then_some((process, is))
            }));
            number = parent;
        }
        steps.reverse();
        steps
    }
}

fn stuck(states: &IndexSet<State<At>>, mut edges: Vec<(u32, u32)>) -> usize {
    edges.sort_unstable();
    let mut can = vec![false; states.len()];
    let holds = |state: &State<At>| state.processes.iter().flatten().any(|local| local.at.is_held());
    let mut pending: Vec<u32> = (0..states.len() as u32).filter(|&number| holds(&states[number as usize])).collect();
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
