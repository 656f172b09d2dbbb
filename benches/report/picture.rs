//! The picture of the README: small panels, in each the same work done by this library and by others.

use std::fmt::Write;

use crate::outcome::{Bar, Panel, Row};

/// The numbers between which a panel shows its values, and how it writes them.
struct Scale {
    from: f64,
    to: f64,
    is_time: bool,
}

const PANELS: [(Panel, &str, Scale); 5] = [
    (Panel::Free, "Take and release a free lock, on a disk", Scale { from: 1e-6, to: 1e-3, is_time: true }),
    (Panel::HandOver, "From a release to the next process", Scale { from: 1e-5, to: 1e-1, is_time: true }),
    (Panel::Crash, "From SIGKILL of the holder to the next process", Scale { from: 1e-4, to: 1e-1, is_time: true }),
    (Panel::Waits, "Threads for thousands of waits", Scale { from: 1.0, to: 1e3, is_time: false }),
    (Panel::Exit, "From a timeout to the end of the program", Scale { from: 1e-3, to: 1e1, is_time: true }),
];

/// One column, so that it can be read on a narrow screen.
const WIDTH: i32 = 430;
/// Where the bars begin and end.
const BARS: (i32, i32) = (150, WIDTH - 80);
const LINE: i32 = 20;
/// The heights of a panel's title and of its axis.
const TITLE: i32 = 36;
const AXIS: i32 = 34;

const NOTE: [&str; 4] = [
    "Blue is this library. Shorter is better: medians of one run.",
    "Each line is ten times the one before it.",
    "* It ends when the holder releases the lock, here after 2 s.",
    "512 threads are the limit of Tokio's blocking pool.",
];

const STYLE: &str = "\
    .card{fill:#fff;stroke:#d0d7de}text{fill:#24292f}.axis{fill:#6e7781;font-size:11px}.title{font-weight:bold}\
    .grid{stroke:#d8dee4}.ours{fill:#0969a2}.other{fill:#a3adb8}\
    @media(prefers-color-scheme:dark){.card{fill:#161b22;stroke:#30363d}text{fill:#e6edf3}.axis{fill:#9da7b3}\
    .grid{stroke:#30363d}.ours{fill:#58b0e8}.other{fill:#6e7681}}";

pub(crate) fn draw(rows: &[Row]) -> String {
    let panels = PANELS.map(|(panel, title, scale)| {
        let bars: Vec<&Bar> = rows.iter().flat_map(|row| &row.bars).filter(|bar| bar.panel == panel).collect();
        assert!(
            bars.iter().any(|bar| bar.is_ours) && bars.iter().any(|bar| !bar.is_ours),
            "nothing to compare: {title}"
        );
        (title, scale, bars)
    });
    let mut body = String::new();
    let mut top = 10;
    for (title, scale, bars) in &panels {
        panel(&mut body, top, title, scale, bars);
        top += TITLE + LINE * bars.len() as i32 + AXIS;
    }
    for line in NOTE {
        top += 18;
        writeln!(body, "<text class=\"axis\" x=\"20\" y=\"{top}\">{line}</text>").unwrap();
    }
    top += 16;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top}\" viewBox=\"0 0 {WIDTH} {top}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"card\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n{body}</svg>\n",
        WIDTH - 1,
        top - 1
    )
}

fn panel(svg: &mut String, top: i32, title: &str, scale: &Scale, bars: &[&Bar]) {
    let (first, last) = BARS;
    let bottom = top + TITLE + LINE * bars.len() as i32;
    writeln!(svg, "<text class=\"title\" x=\"20\" y=\"{}\">{title}</text>", top + 20).unwrap();
    let decades = (scale.to / scale.from).log10().round() as i32;
    for decade in 0..=decades {
        let (x, value) = (first + (last - first) * decade / decades, scale.from * 10f64.powi(decade));
        let label = scale.label(value);
        writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x}\" x2=\"{x}\" y1=\"{}\" y2=\"{bottom}\"/>\
             <text class=\"axis\" x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            top + TITLE - 6,
            bottom + 14
        )
        .unwrap();
    }
    for (number, bar) in bars.iter().enumerate() {
        let y = top + TITLE + LINE * number as i32;
        let part = ((bar.value / scale.from).log10() / f64::from(decades)).clamp(0.005, 1.0);
        let length = (f64::from(last - first) * part) as i32;
        let class = if bar.is_ours { "ours" } else { "other" };
        let (label, value) = (bar.label, scale.label(bar.value));
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>\
             <rect class=\"{class}\" x=\"{first}\" y=\"{y}\" width=\"{length}\" height=\"13\"/>\
             <text x=\"{}\" y=\"{}\">{value}</text>",
            first - 8,
            y + 11,
            first + length + 6,
            y + 11
        )
        .unwrap();
    }
}

impl Scale {
    /// The value with two digits and its unit.
    fn label(&self, value: f64) -> String {
        let (value, unit) = match value {
            value if !self.is_time => (value, ""),
            seconds if seconds < 0.999e-3 => (seconds * 1e6, " µs"),
            seconds if seconds < 0.999 => (seconds * 1e3, " ms"),
            seconds => (seconds, " s"),
        };
        match value < 9.95 && value.fract() > 0.05 {
            true => format!("{value:.1}{unit}"),
            false => format!("{value:.0}{unit}"),
        }
    }
}
