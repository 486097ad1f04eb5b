//! Columns that line up, without lines around them.

use clap::builder::styling::Style;
use unicode_width::UnicodeWidthStr as _;

use crate::{
    failure::Result,
    output::{HEADING, Output},
};

/// To which side the cells of a column are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Columns whose width is that of their widest cell. Rows are measured first and printed later, so a long
/// table need not be held in memory.
#[derive(Debug)]
pub(crate) struct Columns(Vec<Column>);

#[derive(Debug)]
struct Column {
    heading: String,
    align: Align,
    width: usize,
}

impl Columns {
    /// Columns with these headings.
    pub(crate) fn new(columns: impl IntoIterator<Item = (impl Into<String>, Align)>) -> Self {
        let column = |(heading, align): (_, Align)| {
            let heading: String = Into::into(heading);
            Column { width: heading.width(), heading, align }
        };
        Self(columns.into_iter().map(column).collect())
    }

    /// Makes room for a row.
    pub(crate) fn measure<S: AsRef<str>>(&mut self, cells: &[S]) {
        for (column, cell) in self.0.iter_mut().zip(cells) {
            column.width = column.width.max(cell.as_ref().width());
        }
    }

    /// Prints the headings.
    pub(crate) fn print_headings(&self, out: &mut Output) -> Result<()> {
        let headings: Vec<_> = self.0.iter().map(|column| (column.heading.as_str(), HEADING)).collect();
        self.print(out, &headings)
    }

    /// Prints a row, each cell in its style.
    pub(crate) fn print<S: AsRef<str>>(&self, out: &mut Output, cells: &[(S, Style)]) -> Result<()> {
        let mut line = String::new();
        let last = cells.len().saturating_sub(1);
        for (index, (column, (cell, style))) in self.0.iter().zip(cells).enumerate() {
            let cell = cell.as_ref();
            let padding = " ".repeat(column.width.saturating_sub(cell.width()));
            let painted = if *style == Style::new() { cell.to_owned() } else { out.paint(*style, cell) };
            match column.align {
                Align::Right => line.extend([padding, painted]),
                Align::Left if index == last => line.push_str(&painted),
                Align::Left => line.extend([painted, padding]),
            }
            if index < last {
                line.push_str("  ");
            }
        }
        out.line(line.trim_end())
    }
}

/// Prints a table that is small enough to be held in memory.
pub(crate) fn print(
    out: &mut Output,
    columns: impl IntoIterator<Item = (&'static str, Align)>,
    rows: &[Vec<String>],
) -> Result<()> {
    let mut columns = Columns::new(columns);
    rows.iter().for_each(|row| columns.measure(row));
    columns.print_headings(out)?;
    for row in rows {
        let cells: Vec<_> = row.iter().map(|cell| (cell, Style::new())).collect();
        columns.print(out, &cells)?;
    }
    Ok(())
}
