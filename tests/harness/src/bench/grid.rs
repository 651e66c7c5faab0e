//! Tables in Markdown.

use std::fmt;

/// A table in Markdown with aligned columns.
pub(super) struct Grid {
    heads: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Grid {
    pub(super) fn new(heads: &[&str]) -> Self {
        Self {
            heads: heads.iter().map(|head| (*head).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// The cells; `None` where a column does not apply.
    pub(super) fn add(&mut self, cells: impl IntoIterator<Item = Option<String>>) {
        let cells = cells.into_iter().map(Option::unwrap_or_default);
        self.rows.push(cells.collect());
    }
}

/// A goal, and whether it is met.
pub(super) fn stands(met: bool, goal: &str) -> String {
    let stands = if met { "met" } else { "MISSED" };
    format!("{stands:<6}  {goal}")
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&self.heads]);
            cells
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.heads.len()).map(width).collect();
        let mut line = |cells: &[String]| {
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "| {cell:<width$} |")?,
                    _ => write!(f, " {cell:>width$} |")?,
                }
            }
            writeln!(f)
        };
        line(&self.heads)?;
        let rule = widths
            .iter()
            .enumerate()
            .map(|(column, width)| match column {
                0 => "-".repeat(*width),
                _ => format!("{}:", "-".repeat(width.saturating_sub(1))),
            });
        line(&rule.collect::<Vec<_>>())?;
        self.rows.iter().try_for_each(|row| line(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut grid = Grid::new(&["a", "number"]);
        grid.add([Some("언어".to_owned()), None]);
        grid.add([Some("long".to_owned()), Some("1".to_owned())]);
        let wanted =
            "| a    | number |\n| ---- | -----: |\n| 언어   |        |\n| long |      1 |\n";
        assert_eq!(grid.to_string(), wanted);
    }
}
