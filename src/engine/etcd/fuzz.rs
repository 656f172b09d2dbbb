//! The parsers of what a member of a cluster says, for fuzzing.

use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};

use prost::Message;

use super::value::{self, Signature};
use super::{grpc, proto};
use crate::words::mode::Mode;

/// The frames of a stream, whatever it answers.
pub(crate) fn answer(bytes: &[u8]) {
    read_all::<proto::RangeResponse>(bytes);
    read_all::<proto::TxnResponse>(bytes);
    read_all::<proto::WatchResponse>(bytes);
}

fn read_all<A: Message + Default>(bytes: &[u8]) {
    let mut read = BytesMut::from(bytes);
    while let Ok(Some(_)) = grpc::take_message::<A>(&mut read, bytes.len()) {}
}

/// The end of a call.
pub(crate) fn status(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |&byte| byte == b'\n').map(HeaderValue::from_bytes);
    let mut headers = HeaderMap::new();
    for name in ["grpc-status", "grpc-message"] {
        if let Some(Ok(value)) = parts.next() {
            headers.insert(name, value);
        }
    }
    if let Err(failure) = grpc::status(&headers) {
        drop((failure.is_passing(), failure.is_in_doubt(), failure.to_string()));
    }
}

/// The value of a key. What we write is read again.
pub(crate) fn value(bytes: &[u8]) {
    let holder = value::holder(bytes);
    let shown = holder.to_string();
    assert!(!shown.contains(char::is_control) && shown.len() < 8_000, "{shown}");
    let name = String::from_utf8_lossy(bytes).into_owned();
    let signature = Signature { pid: 7, host: "db".into(), name };
    for (mode, is_shared) in [(Mode::Exclusive, false), (Mode::Shared, true)] {
        let value = signature.value(mode, SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(1)));
        assert_eq!(value::is_shared(&value), is_shared);
        assert_eq!((value::holder(&value).pid(), value::holder(&value).host()), (7, Some("db")));
    }
}
