//! The report as a table.

use std::fmt::Write;

use crate::outcome::Row;
use crate::picture;

pub(crate) fn write(rows: &[Row]) {
    std::fs::write("docs/benchmarks.md", table(rows)).unwrap();
    std::fs::write("docs/benchmarks.svg", picture::draw(rows)).unwrap();
    println!("written: docs/benchmarks.md, docs/benchmarks.svg");
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `cargo bench --features postgres,etcd`. What is compared took turns in one run.\n\n\
         # Ratios\n\nThe ratios say more than the times, which depend on the machine.\n\n\
         | What | Ratio | To | Goal | | Median (99th percentile), or the number behind the ratio |\n|---|---|---|---|---|---|\n",
    );
    for row in rows.iter().filter(|row| !row.has_unit()) {
        let (goal, verdict) = (row.goal(), row.verdict());
        writeln!(text, "| {} | {:.2} | {} | {goal} | {verdict} | {} |", row.what, row.value, row.beside, row.details)
            .unwrap();
    }
    text.push_str("\n# Values\n\n| What | Measured | Goal | | More |\n|---|---|---|---|---|\n");
    for row in rows.iter().filter(|row| row.has_unit()) {
        let (goal, verdict) = (row.goal(), row.verdict());
        writeln!(text, "| {} | {:.2} {} | {goal} | {verdict} | {} |", row.what, row.value, row.beside, row.details)
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
