//! Looks at keys, many in one request. When a stream of watches breaks off, all locks of a process look at once.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::cluster::Cluster;
use super::failure::Failure;
use super::proto::{Operation, Outcome, RangeRequest, RangeResponse, TxnRequest};
use crate::engine::server::driver;

/// How many fit into one request. etcd takes 128 (`--max-txn-ops`), and does not write a transaction that only reads.
const MOST: usize = 100;

pub(super) struct Looks {
    cluster: Arc<Cluster>,
    waiting: Mutex<Vec<Look>>,
}

struct Look {
    question: RangeRequest,
    answer: oneshot::Sender<Result<RangeResponse, Failure>>,
}

impl Looks {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, waiting: Mutex::default() }
    }

    /// The answer of the cluster to a question that was asked after this call. Those who ask at the same moment share a
    /// request.
    pub(super) async fn look(self: &Arc<Self>, question: RangeRequest) -> Result<RangeResponse, Failure> {
        if !question.keys_only {
            // The answer may be long.
            return self.ask(&question).await;
        }
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut waiting = self.waiting();
            waiting.push(Look { question, answer });
            waiting.len() == 1
        };
        if is_first {
            // The job begins when all have asked who are ready now.
            driver::spawn(Arc::clone(self).serve()).map_err(|error| {
                self.waiting().clear();
                Failure::not_sent(error)
            })?;
        }
        answered.await.unwrap_or_else(|_| Err(Failure::not_sent(driver::panicked())))
    }

    async fn serve(self: Arc<Self>) {
        let mut looks = mem::take(&mut *self.waiting());
        looks.retain(|look| !look.answer.is_closed());
        while looks.len() > MOST {
            let rest = looks.split_off(MOST);
            let (this, batch) = (Arc::clone(&self), mem::replace(&mut looks, rest));
            // Without it, those who ask hear that it has failed.
            let _ = driver::spawn(async move { this.answer_all(batch).await });
        }
        self.answer_all(looks).await;
    }

    async fn answer_all(&self, batch: Vec<Look>) {
        if batch.len() < 2 {
            return self.answer_each(batch).await;
        }
        let ask = |look: &Look| Operation::Range(look.question.clone()).into();
        let request = TxnRequest { success: batch.iter().map(ask).collect(), ..TxnRequest::default() };
        let answered = match self.cluster.call(&request, self.cluster.deadline()).await {
            Ok(answered) => answered.value,
            // One that may not be looked at is no answer for the others.
            Err(failure) if !failure.is_passing() => return self.answer_each(batch).await,
            Err(failure) => return batch.into_iter().for_each(|look| drop(look.answer.send(Err(failure.clone())))),
        };
        let mut outcomes = answered.responses.into_iter();
        for look in batch {
            let answer = match outcomes.next().and_then(|outcome| outcome.response) {
                Some(Outcome::Range(range)) => Ok(RangeResponse { header: answered.header, ..range }),
                _ => Err(Failure::no_answer()),
            };
            let _ = look.answer.send(answer);
        }
    }

    async fn answer_each(&self, batch: Vec<Look>) {
        for look in batch {
            let _ = look.answer.send(self.ask(&look.question).await);
        }
    }

    async fn ask(&self, question: &RangeRequest) -> Result<RangeResponse, Failure> {
        Ok(self.cluster.call(question, self.cluster.deadline()).await?.value)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Look>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
