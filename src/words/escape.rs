//! Text from outside, made safe to show: a path or a process name can hold line feeds and escape codes.

use std::fmt::{self, Write};
use std::path::Path;

/// Shows control characters as Rust's escapes, and all other characters as they are.
pub(crate) struct Escaped<T>(pub(crate) T);

impl fmt::Display for Escaped<&str> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| match char.is_control() {
            true => write!(f, "{}", char.escape_default()),
            false => f.write_char(char),
        })
    }
}

impl fmt::Display for Escaped<&Path> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&*self.0.to_string_lossy()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_that_moves_its_cursor() {
        assert_eq!(Escaped("a\n\u{1b}[2Jü\u{9b}b").to_string(), r"a\n\u{1b}[2Jü\u{9b}b");
        assert_eq!(Escaped(Path::new("/run/a\tb")).to_string(), r"/run/a\tb");
    }
}
