//! One row of the report.

use std::fmt;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// For comparison only.
    None,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    /// What the value 1 means: the operation that is compared with, or the unit.
    pub(crate) beside: &'static str,
    pub(crate) value: f64,
    pub(crate) goal: Goal,
    /// Medians and similar figures, as text.
    pub(crate) details: String,
    /// Why the goal may be missed.
    pub(crate) excuse: &'static str,
    /// What the picture shows of it.
    pub(crate) bars: Vec<Bar>,
}

/// What one panel of the picture compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Panel {
    Free,
    HandOver,
    Crash,
    Waits,
    Exit,
}

#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) panel: Panel,
    pub(crate) label: &'static str,
    pub(crate) is_ours: bool,
    /// In seconds, or a count.
    pub(crate) value: f64,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, beside: &'static str, value: f64, goal: Goal, details: String) -> Self {
        Self { what: what.into(), beside, value, goal, details, excuse: "", bars: Vec::new() }
    }

    pub(crate) fn if_missed(mut self, excuse: &'static str) -> Self {
        self.excuse = excuse;
        self
    }

    /// Shows this library's value in the picture.
    pub(crate) fn ours(self, panel: Panel, label: &'static str, value: f64) -> Self {
        self.bar(Bar { panel, label, is_ours: true, value })
    }

    /// Shows another's value in the picture.
    pub(crate) fn other(self, panel: Panel, label: &'static str, value: f64) -> Self {
        self.bar(Bar { panel, label, is_ours: false, value })
    }

    fn bar(mut self, bar: Bar) -> Self {
        self.bars.push(bar);
        self
    }

    /// Whether the value has a unit. Otherwise it is a ratio.
    pub(crate) fn has_unit(&self) -> bool {
        const UNITS: [&str; 10] = [
            "milliseconds",
            "seconds",
            "KiB",
            "threads",
            "times",
            "percent",
            "%",
            "writes a second",
            "served later",
            "MiB",
        ];
        UNITS.iter().any(|unit| self.beside.starts_with(unit))
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match self.goal {
            Goal::AtMost(goal) if self.value <= goal => "met",
            Goal::AtLeast(goal) if self.value >= goal => "met",
            Goal::None => "",
            _ => "missed",
        }
    }

    pub(crate) fn goal(&self) -> String {
        match self.goal {
            Goal::AtMost(goal) => format!("≤ {goal}"),
            Goal::AtLeast(goal) => format!("≥ {goal}"),
            Goal::None => String::new(),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, beside, value, details, .. } = self;
        write!(f, "{what:<58} {value:>8.2}  {:<7} {:<7} {beside}; {details}", self.goal(), self.verdict())
    }
}

/// The measured times of one contender.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The quantile: this share of the times is not longer.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted[((sorted.len() - 1) as f64 * share) as usize]
    }

    pub(crate) fn count(&self, is_so: impl Fn(Duration) -> bool) -> usize {
        self.0.iter().filter(|&&time| is_so(time)).count()
    }

    pub(crate) fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The median in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.median().as_secs_f64()
    }

    /// The ratio of this median to the other median.
    pub(crate) fn over(&self, other: &Self) -> f64 {
        self.median().div_duration_f64(other.median())
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        write!(f, "{:.1} µs (p99 {:.0})", micros(self.median()), micros(self.quantile(0.99)))
    }
}
