//! Text from outside, made safe to show. A path, the name of a process or the words of a server can hold line feeds, escape
//! codes of a terminal, and marks that turn a line around.

use std::fmt;
use std::path::Path;

/// Shows as escapes what [`char::escape_debug`] escapes: control characters, separators of lines, and everything else that
/// does not print. Quotes and backslashes stay: unlike there, nothing is around the text.
pub(crate) struct Escaped<T>(pub(crate) T);

impl fmt::Display for Escaped<&str> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KEPT: [char; 3] = ['\\', '"', '\''];
        self.0.split_inclusive(KEPT).try_for_each(|part| {
            let text = part.trim_end_matches(KEPT);
            write!(f, "{}{}", text.escape_debug(), &part[text.len()..])
        })
    }
}

impl fmt::Display for Escaped<&Path> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&*self.0.to_string_lossy()).fmt(f)
    }
}

/// The words of somebody else for an error: escaped, and cut off where they are too long.
pub(crate) fn said(words: &str) -> String {
    const LONGEST: usize = 2_000;
    match words.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… ({} more bytes)", Escaped(&words[..end]), words.len() - end),
        None => Escaped(words).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_that_moves_its_cursor_or_turns_a_line_around() {
        assert_eq!(Escaped("a\n\u{1b}[2Jü\u{9b}b").to_string(), r"a\n\u{1b}[2Jü\u{9b}b");
        for odd in "\0\t\u{7f}\u{85}\u{a0}\u{ad}\u{61c}\u{200b}\u{200d}\u{200e}\u{202e}\u{2028}\u{2029}\u{2066}\u{feff}\u{fff9}\u{e000}\u{e0041}\u{378}".chars() {
            let shown = Escaped(&*format!("a{odd}b")).to_string();
            assert_eq!(shown, format!("a{}b", odd.escape_debug()));
            assert!(shown.starts_with("a\\"), "{shown}");
        }
        assert_eq!(Escaped(Path::new("/run/a\tb")).to_string(), r"/run/a\tb");
        let kept = r#"it's "C:\run" \\ é 日本 ب 👍"#;
        assert_eq!(Escaped(kept).to_string(), kept);
    }

    #[test]
    fn words_without_an_end_are_cut_off() {
        assert_eq!(said("no\nbody"), r"no\nbody");
        assert!(said(&"é".repeat(2_000)).ends_with('é'));
        assert!(said(&"é".repeat(2_001)).ends_with("é… (2 more bytes)"));
    }
}
