//! Gives the bytes of the fuzzer to the parser that the variable `PARSER` names.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokio_lockfile::fuzz::PARSERS;

static PARSER: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("PARSER").unwrap_or_default();
    PARSERS.iter().find(|(name, _)| *name == wanted).expect("PARSER is the name of a parser").1
});

fuzz_target!(|bytes: &[u8]| PARSER(bytes));
