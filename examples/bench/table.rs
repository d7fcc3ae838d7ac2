//! What a topic has found out: tables to read, or the same as JSON.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table as TextTable};
use serde_json::{Map, Value, json};

/// All that one topic has measured.
pub(crate) struct Report {
    pub(crate) topic: &'static str,
    pub(crate) tables: Vec<Table>,
}

pub(crate) struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

pub(crate) enum Cell {
    Text(String),
    /// A number, and with how many decimals it is shown.
    Number(f64, usize),
    /// A share of 1, shown in percent.
    Percent(f64),
    /// A difference of two shares, shown in percent with its sign.
    Points(f64),
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.into(), rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let cells = cells.into();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// A line below the table.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    fn print(&self) {
        let mut text = TextTable::new();
        text.load_style(ASCII_MARKDOWN).set_header(&self.columns);
        for row in &self.rows {
            text.add_row(row.iter().map(Cell::text));
        }
        for (i, column) in text.column_iter_mut().enumerate() {
            if self.rows.iter().any(|row| !matches!(row[i], Cell::Text(_))) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("{}\n\n{text}\n", self.title);
        for note in &self.notes {
            println!("{note}");
        }
        if !self.notes.is_empty() {
            println!();
        }
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let cells = self.columns.iter().zip(row);
                cells.map(|(name, cell)| (name.to_string(), cell.json())).collect::<Map<_, _>>()
            })
            .map(Value::Object)
            .collect();
        json!({ "title": self.title, "rows": rows, "notes": self.notes })
    }
}

impl Report {
    pub(crate) fn print(&self) {
        println!("## {}\n", self.topic);
        self.tables.iter().for_each(Table::print);
    }

    /// One JSON object on one line.
    pub(crate) fn print_json(&self, machine: &str) {
        let tables: Vec<Value> = self.tables.iter().map(Table::json).collect();
        println!("{}", json!({ "topic": self.topic, "machine": machine, "tables": tables }));
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number, decimals) => grouped(&format!("{number:.decimals$}")),
            Self::Percent(share) => format!("{:.1} %", 100.0 * share),
            Self::Points(difference) => format!("{:+.1} %", 100.0 * difference),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number, _) | Self::Percent(number) | Self::Points(number) => json!(number),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Number(number as f64, 0)
    }
}

/// The digits before the decimal point in groups of three.
fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        let behind = whole.len() - i;
        if i > 0 && behind.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}
