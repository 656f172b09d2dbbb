//! The requests about the keys of a lock, as etcdctl's `lock` and Go's `concurrency.Mutex` make them.
//!
//! Everyone who wants the lock has a key `NAME/LEASE`, with his lease in hexadecimal. Of the keys below `NAME/`, the
//! one with the lowest create revision holds the lock. A key of a reader says so in its value.

use super::proto::{
    Compare, DeleteRangeRequest, Operation, PutRequest, RangeRequest, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchRequest, enumeration,
};

/// The key of one lease for the lock `name`.
pub(super) fn key(name: &str, lease: i64) -> Vec<u8> {
    format!("{name}/{lease:x}").into()
}

/// All keys of the lock `name`: from the first value to before the second.
fn range(name: &str) -> (Vec<u8>, Vec<u8>) {
    // The character after the slash is 0.
    (format!("{name}/").into(), format!("{name}0").into())
}

/// The keys of the lock, the first of the queue in front.
pub(super) fn queue(name: &str) -> RangeRequest {
    let (key, range_end) = range(name);
    let (sort_order, sort_target) = (enumeration::ASCENDING, enumeration::BY_CREATE_REVISION);
    RangeRequest { key, range_end, limit: 0, sort_order, sort_target, keys_only: false, max_create_revision: 0 }
}

/// The key that was made at `revision`, and behind it those in front of it in the queue, the last one first.
pub(super) fn queue_up_to(name: &str, revision: i64) -> RangeRequest {
    RangeRequest { sort_order: enumeration::DESCENDING, max_create_revision: revision, ..queue(name) }
}

/// The first two of these, without their values.
pub(super) fn last_two_up_to(name: &str, revision: i64) -> RangeRequest {
    RangeRequest { limit: 2, keys_only: true, ..queue_up_to(name, revision) }
}

/// The key without its value.
pub(super) fn get(key: &[u8]) -> RangeRequest {
    RangeRequest { key: key.to_owned(), keys_only: true, ..RangeRequest::default() }
}

/// Makes the key unless it is there, and answers with it if it is.
pub(super) fn make(put: PutRequest) -> TxnRequest {
    let is_missing = created_at(&put.key, 0);
    when(is_missing, put)
}

/// The same, only if no key of the lock is younger than `revision`. With 0 as `revision`, only if the lock has no key.
pub(super) fn make_if_none_after(name: &str, revision: i64, put: PutRequest) -> TxnRequest {
    let (key, range_end) = range(name);
    let (result, target) = (enumeration::LESS, enumeration::CREATE_REVISION);
    when(Compare { result, target, key, range_end, create_revision: Some(revision.saturating_add(1)) }, put)
}

fn when(condition: Compare, put: PutRequest) -> TxnRequest {
    let existing = get(&put.key);
    TxnRequest {
        compare: vec![condition],
        success: vec![Operation::Put(put).into()],
        failure: vec![Operation::Range(existing).into()],
    }
}

/// Writes another value into the key that was made at `revision`, if it is still there.
pub(super) fn rewrite(revision: i64, put: PutRequest) -> TxnRequest {
    TxnRequest {
        compare: vec![created_at(&put.key, revision)],
        success: vec![Operation::Put(put).into()],
        failure: Vec::new(),
    }
}

/// Deletes the key that was made at `revision`. A late second copy of this request spares the next key of that name.
pub(super) fn delete(key: &[u8], revision: i64) -> TxnRequest {
    TxnRequest {
        compare: vec![created_at(key, revision)],
        success: vec![Operation::Delete(DeleteRangeRequest { key: key.to_owned() }).into()],
        failure: Vec::new(),
    }
}

fn created_at(key: &[u8], revision: i64) -> Compare {
    Compare {
        result: enumeration::EQUAL,
        target: enumeration::CREATE_REVISION,
        key: key.to_owned(),
        range_end: Vec::new(),
        create_revision: Some(revision),
    }
}

/// Asks to be told of the deletion of the key, at `revision` or later.
pub(super) fn watch(number: i64, key: &[u8], revision: i64) -> WatchRequest {
    let filters = vec![enumeration::NO_PUT];
    let create = WatchCreateRequest { key: key.to_owned(), start_revision: revision, filters, watch_id: number };
    WatchRequest { create: Some(create), ..WatchRequest::default() }
}

pub(super) fn end_watch(id: i64) -> WatchRequest {
    WatchRequest { cancel: Some(WatchCancelRequest { watch_id: id }), ..WatchRequest::default() }
}

/// Has no effect but an answer.
pub(super) fn ask_for_progress() -> WatchRequest {
    WatchRequest { progress: Some(()), ..WatchRequest::default() }
}
