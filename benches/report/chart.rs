//! The report as a table and a picture.

use std::fmt::Write;

use crate::outcome::{Goal, Row};

pub(crate) fn write(rows: &[Row]) {
    std::fs::write("docs/benchmarks.md", table(rows)).unwrap();
    std::fs::write("docs/benchmarks.svg", picture(rows)).unwrap();
    println!("written: docs/benchmarks.md, docs/benchmarks.svg");
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `cargo bench`. Only the ratios mean anything; what is compared took turns in one run.\n\n\
         | What | Measured | Goal | | Beside, or unit | Details |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let (goal, verdict) = (row.goal(), row.verdict());
        writeln!(text, "| {} | {:.2} | {goal} | {verdict} | {} | {} |", row.what, row.value, row.beside, row.details)
            .unwrap();
    }
    let missed: Vec<&Row> = rows.iter().filter(|row| row.verdict() == "missed").collect();
    if !missed.is_empty() {
        text.push_str("\n# Missed goals\n\n");
    }
    for Row { what, excuse, .. } in missed {
        let excuse = if excuse.is_empty() { "No reason is known: a busy machine, or a regression." } else { excuse };
        writeln!(text, "- {what}: {excuse}").unwrap();
    }
    text
}

/// A bar for each row that has a goal: the value as a part of what the goal allows.
fn picture(rows: &[Row]) -> String {
    const LEFT: i32 = 390;
    const WIDTH: i32 = 300;
    const LINE: i32 = 22;
    let used = |row: &Row| match row.goal {
        Goal::AtMost(goal) if row.value <= goal && goal == 0.0 => Some(0.0),
        Goal::AtMost(goal) => Some(row.value.max(0.0) / goal),
        Goal::AtLeast(goal) => Some(goal / row.value),
        Goal::None => None,
    };
    let bars: Vec<(&Row, f64)> = rows.iter().filter_map(|row| Some((row, used(row)?))).collect();
    let height = LINE * (bars.len() as i32 + 3);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <style>text{{fill:#333}}.bar{{fill:#3a7ca5}}.over{{fill:#c8553d}}.goal{{stroke:#888}}\
         @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.bar{{fill:#81c3d7}}.over{{fill:#f28f79}}}}</style>\n\
         <text x=\"10\" y=\"20\" font-weight=\"bold\">Used of what each goal allows; shorter is better</text>\n"
    );
    for (number, (row, used)) in bars.iter().enumerate() {
        let y = LINE * (number as i32 + 2);
        let length = (used.min(1.6) * f64::from(WIDTH) / 1.6) as i32;
        let class = if *used <= 1.0 { "bar" } else { "over" };
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{length}\" height=\"14\"/>\
             <text x=\"{}\" y=\"{}\">{:.2} ({})</text>",
            LEFT - 10,
            y + 5,
            row.what,
            y - 7,
            LEFT + WIDTH + 10,
            y + 5,
            row.value,
            row.goal()
        )
        .unwrap();
    }
    let goal = LEFT + (f64::from(WIDTH) / 1.6) as i32;
    writeln!(
        svg,
        "<line class=\"goal\" x1=\"{goal}\" x2=\"{goal}\" y1=\"{}\" y2=\"{}\"/>\n</svg>",
        LINE,
        height - LINE
    )
    .unwrap();
    svg
}
