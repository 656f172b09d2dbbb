//! Who holds a lock, as the server tells it.

use std::sync::Arc;

use tokio_postgres::SimpleQueryRow;

use super::config::Lock;
use super::failure::Failure;
use super::server::Server;
use super::session::column;
use super::{application, sql};
use crate::engine::server::driver;
use crate::words::error::LockError;
use crate::words::holder::Holder;

pub(super) async fn of(lock: Arc<Lock>) -> Result<Vec<Holder>, LockError> {
    let asking = driver::run({
        let lock = Arc::clone(&lock);
        async move { ask(&lock).await }
    });
    let found = asking.await.map_err(Failure::from).and_then(|found| found);
    found.map_err(|failure| failure.into_error(&lock.target, "look at"))
}

async fn ask(lock: &Lock) -> Result<Vec<Holder>, Failure> {
    let server = Server::with(&lock.settings);
    let statement = sql::holders(lock.number);
    loop {
        let (mut session, is_warm) = server.session().await?;
        match session.rows(&statement).await {
            Ok(rows) => {
                server.keep_warm(session);
                return Ok(rows.iter().map(holder).collect());
            }
            Err(failure) if failure.is_end_of_session() && is_warm => {}
            Err(failure) => return Err(failure),
        }
    }
}

/// A holder that is not of this crate has the name that it gave itself, and the PID of its server process.
pub(super) fn holder(row: &SimpleQueryRow) -> Holder {
    let get = |at| column(row, at).ok().flatten();
    let text = |at| get(at).filter(|text| !text.is_empty()).map(str::to_owned);
    let now = get(5).and_then(|now| now.parse().ok()).unwrap_or_default();
    get(3).and_then(|name| application::parse(name, now)).unwrap_or_else(|| {
        let pid = get(2).and_then(|pid| pid.parse().ok()).unwrap_or_default();
        Holder::new(pid, text(3), None).on_host(text(4))
    })
}
