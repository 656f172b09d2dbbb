//! A member whose words would harm a terminal or forge a log.

use h2::server::SendResponse;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpListener;

use crate::evil_words::{EVIL, assert_errors_are_harmless};

/// "Permission denied", which no other member would answer better.
fn refuse(mut respond: SendResponse<bytes::Bytes>) {
    let words = EVIL.to_owned() + &"x".repeat(4_000);
    let words = utf8_percent_encode(&words, NON_ALPHANUMERIC).to_string();
    let head = http::Response::builder().header("content-type", "application/grpc");
    let head = head.header("grpc-status", "7").header("grpc-message", words).body(()).unwrap();
    respond.send_response(head, true).unwrap();
}

#[tokio::test]
async fn what_a_member_says_is_harmless_where_it_is_shown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("etcd://{}/x?connect_timeout=2s", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_, respond))) = connection.accept().await {
                    refuse(respond);
                }
            });
        }
    });
    assert_errors_are_harmless(&url).await;
}
