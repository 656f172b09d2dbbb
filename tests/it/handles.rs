//! Handles and guards as values: equality, conversions, unwinding, errors.

use std::collections::HashMap;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};

use tokio_lockfile::{Leadership, LockError, LockFile, LockGuard, LockKind, LockUrl, Semaphore, Singleton};

use crate::support::{FILE_KINDS, HANG, take};

#[test]
fn handles_are_equal_if_they_name_the_same_lock() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("x.lock"), dir.path().join("y.lock"));
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let roundabout = dir.path().join("sub").join("..").join("x.lock");
    #[expect(clippy::mutable_key_type, reason = "what the hash depends on does not change")]
    let mut numbers = HashMap::new();
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        let lock = kind(&path);
        assert_eq!(lock, kind(&path));
        assert_eq!(lock, kind(&roundabout));
        assert_ne!(lock, kind(&other));
        assert_eq!(lock, lock.url().to_string().parse().unwrap());
        let built = LockFile::builder().poll_only(true).open(&lock.url().to_string()).unwrap();
        assert_eq!(lock, built, "options change no identity");
        numbers.insert(lock, number);
    }
    let null = LockFile::null();
    numbers.insert(null.clone(), 100);
    assert_eq!(null, null.clone());
    assert_ne!(null, LockFile::null());
    let named = |name: &str| LockFile::open(&format!("nulllockfile:handles-{name}")).unwrap();
    assert_eq!(named("a"), named("a"));
    assert_ne!(named("a"), named("b"));
    for (number, kind) in FILE_KINDS.iter().enumerate() {
        assert_eq!(numbers[&kind(&roundabout)], number);
    }
    assert_eq!((numbers[&null], numbers.len()), (100, FILE_KINDS.len() + 1));
}

#[test]
fn a_url_becomes_a_handle() {
    let dir = tempfile::tempdir().unwrap();
    let url: LockUrl = FILE_KINDS[0](&dir.path().join("x")).url();
    let handles = [
        LockFile::try_from(&url).unwrap(),
        LockFile::try_from(url.clone()).unwrap(),
        url.to_string().parse::<LockFile>().unwrap(),
    ];
    assert!(handles.iter().all(|lock| lock.url() == url));
    assert!(matches!("x:y".parse::<LockFile>(), Err(LockError::InvalidUrl { .. })));
}

#[test]
fn a_panic_does_not_poison_a_lock() {
    fn is_unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
    is_unwind_safe::<LockFile>();
    is_unwind_safe::<LockGuard>();
    is_unwind_safe::<Leadership>();
    is_unwind_safe::<Semaphore>();
    is_unwind_safe::<Singleton>();
    fn is_value<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    is_value::<Semaphore>();
    is_value::<Singleton>();
    is_value::<Leadership>();
    let lock = LockFile::null();
    std::panic::catch_unwind(|| {
        let _guard = lock.blocking_obtain().unwrap();
        std::panic::resume_unwind(Box::new(()));
    })
    .unwrap_err();
    assert!(!lock.locked() && lock.blocking_attempt().unwrap().is_some());
}

fn assert_becomes(error: LockError, kind: io::ErrorKind) {
    let text = error.to_string();
    let error = io::Error::from(error);
    assert_eq!((error.kind(), error.to_string()), (kind, text));
    assert!(error.get_ref().unwrap().is::<LockError>());
}

#[tokio::test]
async fn an_error_becomes_an_io_error_of_a_fitting_kind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    let lock = FILE_KINDS[0](&path);
    assert_becomes(LockFile::open("x:y").unwrap_err(), io::ErrorKind::InvalidInput);
    assert_becomes(LockFile::new("").unwrap_err(), io::ErrorKind::InvalidInput);
    let elsewhere = if cfg!(windows) { LockFile::flock(&path) } else { LockFile::winflock(&path) };
    assert_becomes(elsewhere.unwrap_err(), io::ErrorKind::Unsupported);
    let missing = FILE_KINDS[0](&path.join("x")).attempt().await.unwrap_err();
    let kind = missing.io_error().unwrap().kind();
    assert_becomes(missing, kind);
    assert_eq!(kind, io::ErrorKind::NotFound);
    let guard = take(&lock).await;
    let late = lock.obtain_timeout(std::time::Duration::ZERO).await.unwrap_err();
    assert_becomes(late, io::ErrorKind::TimedOut);
    drop(guard);
}

#[cfg(unix)]
#[tokio::test]
async fn the_errors_of_unix_become_io_errors_too() {
    let dir = tempfile::tempdir().unwrap();
    let lock = LockFile::shlock(dir.path().join("x.lock")).unwrap();
    let path = lock.path().unwrap();
    let guard = take(&lock).await;
    std::fs::remove_file(path).unwrap();
    assert_becomes(guard.release().await.unwrap_err(), io::ErrorKind::StaleNetworkFileHandle);
    std::fs::write(path, "garbage").unwrap();
    assert_becomes(lock.attempt().await.unwrap_err(), io::ErrorKind::InvalidData);
    // A dead PID in fetchmail's form.
    std::fs::write(path, "4194305\n60\n").unwrap();
    assert_becomes(lock.attempt().await.unwrap_err(), io::ErrorKind::ResourceBusy);
}

/// The chains that a service writes, each as one expression.
#[tokio::test]
async fn a_chain_ends_in_what_is_wanted_without_a_let_in_between() {
    fn make(path: &std::path::Path) -> Result<LockFile, LockError> {
        LockFile::builder().mode(0o600).create_dirs(true).build(path)
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    assert_eq!(make(&path).unwrap(), LockFile::new(&path).unwrap());
    let task = {
        let path = path.clone();
        tokio::spawn(async move {
            LockFile::builder().poll_only(true).build(&path)?.obtain_timeout(HANG).await?.release().await
        })
    };
    task.await.unwrap().unwrap();
    let singleton = Singleton::new(LockFile::builder().mode(0o600).build(&path).unwrap()).grace(HANG);
    let done = singleton.run(|| async { Ok::<_, String>(1) }, std::future::pending::<()>()).await;
    assert_eq!(done.unwrap(), Some(1));
    let builder = LockFile::builder().mode(0o600).poll_only(true).clone();
    assert_eq!(builder.build(&path).unwrap(), LockFile::new(&path).unwrap());
    assert_eq!(builder.native(&path).unwrap(), LockFile::native(&path).unwrap());
}

#[cfg(feature = "serde")]
#[test]
fn a_url_is_a_string_in_a_configuration() {
    let given = r#"["lockfile:/run/a%20b.lock","nulllockfile:x"]"#;
    let urls: Vec<LockUrl> = serde_json::from_str(given).unwrap();
    assert_eq!(urls[0].to_string(), "lockfile:///run/a%20b.lock");
    let text = serde_json::to_string(&urls).unwrap();
    assert_eq!(serde_json::from_str::<Vec<LockUrl>>(&text).unwrap(), urls);
    let error = serde_json::from_str::<LockUrl>(r#""file:/x""#).unwrap_err().to_string();
    assert!(error.contains("invalid lock URL \"file:/x\""), "{error}");
    let error = serde_json::from_str::<LockUrl>("7").unwrap_err().to_string();
    assert!(error.contains("a lock URL"), "{error}");
}

/// The URL is understood in every build, so that the answer can say what is missing.
#[test]
fn a_kind_that_is_not_built_in_names_its_feature() {
    let kinds = [
        (cfg!(feature = "postgres"), LockKind::Postgres, "postgres://app:S3cretPw@db/app?lock=x"),
        (cfg!(feature = "etcd"), LockKind::Etcd, "etcd://app:S3cretPw@db/x"),
    ];
    for (_, kind, url) in kinds.into_iter().filter(|(is_built_in, ..)| !is_built_in) {
        let error = LockFile::open(url).unwrap_err();
        assert!(matches!(&error, LockError::Unsupported { kind: named, .. } if named == &kind), "{error:?}");
        assert!(error.to_string().contains(&format!("feature \"{kind}\"")), "{error}");
        assert!(!format!("{error} {error:?}").contains("S3cretPw"), "{error:?}");
        assert_eq!(error.path(), None);
    }
}
