//! The SQL of docs/beyond.md, which keeps stale writers out.

use tokio_postgres::Client;

use crate::server::{Server, key, value};
use crate::support::take;

const PAGE: &str = include_str!("../../docs/beyond.md");

/// A statement, as the page has it.
fn of_the_page(statement: &str) -> &str {
    let has_it = PAGE.split_whitespace().collect::<Vec<_>>().join(" ").contains(statement);
    assert!(has_it, "the page does not say: {statement}");
    statement
}

async fn rows(client: &Client, statement: &str, parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)]) -> u64 {
    client.execute(statement, parameters).await.unwrap()
}

#[tokio::test]
async fn a_stale_writer_is_rejected() {
    let server = Server::shared();
    let (lock, client) = (server.lock("lock=fenced"), server.client().await);
    let create = of_the_page("CREATE TABLE report (id int PRIMARY KEY, content text, token bigint NOT NULL);");
    client.batch_execute(create).await.unwrap();
    client.batch_execute("INSERT INTO report VALUES (1, '', 0)").await.unwrap();
    client
        .batch_execute(of_the_page("CREATE TABLE fence (lock text PRIMARY KEY, token bigint NOT NULL);"))
        .await
        .unwrap();
    let update = of_the_page("UPDATE report SET content = $1, token = $2 WHERE id = 1 AND token <= $2;");
    let advance = of_the_page(
        "INSERT INTO fence VALUES ('nightly', $1) ON CONFLICT (lock) DO UPDATE SET token = excluded.token \
         WHERE fence.token <= excluded.token;",
    );
    let stale = take(&lock).await;
    let stale_token = stale.fencing_token().unwrap() as i64;
    assert_eq!(rows(&client, update, &[&"stale", &stale_token]).await, 1);
    assert_eq!(rows(&client, advance, &[&stale_token]).await, 1);
    stale.release().await.unwrap();
    let next = take(&lock).await;
    let token = next.fencing_token().unwrap() as i64;
    for _write in 0..2 {
        assert_eq!(rows(&client, update, &[&"next", &token]).await, 1);
        assert_eq!(rows(&client, advance, &[&token]).await, 1);
    }
    assert_eq!(rows(&client, update, &[&"stale", &stale_token]).await, 0);
    assert_eq!(rows(&client, advance, &[&stale_token]).await, 0);
    assert_eq!(value(&client, "SELECT content FROM report").await, "next");
    // The number of a lock, as the page gives it.
    of_the_page("SELECT pg_advisory_lock(('x' || encode(sha256('nightly'), 'hex'))::bit(64)::bigint);");
    assert_eq!(key("nightly"), "('x' || encode(sha256('nightly'), 'hex'))::bit(64)::bigint");
}
