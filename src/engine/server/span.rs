//! Spans of time in a URL.

use std::time::Duration;

/// A number with a unit: `1500ms`, `10s`, `2m`, `1h`. Without a unit it is in seconds, as in libpq.
pub(crate) fn parse(name: &str, text: &str) -> Result<Duration, String> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let number: Option<u64> = text[..digits].parse().ok();
    match number.and_then(|number| number.checked_mul(unit)).filter(|_| unit > 0) {
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err(format!("its {name} {text:?} is not a time, such as 10s or 1500ms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("10", 10_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse("ttl", text), Ok(Duration::from_millis(millis)));
        }
        for text in ["", "s", "-1s", "1.5s", "1d", "1 s", "99999999999999999999s", "999999999999999999m"] {
            assert!(parse("ttl", text).unwrap_err().contains("ttl"), "{text}");
        }
    }
}
