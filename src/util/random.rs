//! Random numbers for jitter. They need not be good: the standard library's hash keys are enough.

use std::hash::{BuildHasher, RandomState};

/// A number from 0 up to, but not including, 1.
pub(crate) fn fraction() -> f64 {
    // 53 bits are what an f64 holds exactly.
    (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_fill_their_range() {
        let numbers: Vec<f64> = (0..1_000).map(|_| fraction()).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        for tenth in 0..10 {
            let low = f64::from(tenth) / 10.0;
            assert!(numbers.iter().any(|&number| number >= low && number < low + 0.1), "none above {low}");
        }
    }
}
