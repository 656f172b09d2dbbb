//! What a hostile server says, for the tests with every server.

/// It would clear the terminal, turn a line around, and look like a line of another program in the log.
pub(crate) const EVIL: &str =
    "denied\n\u{1b}[2J\u{7}\r\u{9b}\u{202e}\u{2066}\u{2028}\u{feff}Nov 30 sshd: Accepted password for root";

pub(crate) fn assert_harmless(shown: &str) {
    // Marks in the words that are no control characters.
    let is_evil = |char: char| char.is_control() || "\u{202e}\u{2066}\u{2028}\u{feff}".contains(char);
    let evil: Vec<char> = shown.chars().filter(|&char| is_evil(char)).collect();
    assert_eq!(evil, [], "{shown:?}");
    assert!(shown.len() < 20_000, "{} bytes", shown.len());
}
