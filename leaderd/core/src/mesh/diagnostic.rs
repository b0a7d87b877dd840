//! What is wrong with a mesh file, where, and what to do.

use std::fmt;

use serde::Serialize;

/// How many mistakes are reported at most; a file with more is told how many were left out.
pub const MAX_DIAGNOSTICS: usize = 100;

/// One mistake. `{}` shows it without the file's name, [`Diagnostic::in_file`] with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Diagnostic {
    /// `mesh.toml:12:3: … ⏎   help: …`
    pub fn in_file(&self, file: &str) -> String {
        format!("{file}:{self}")
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)?;
        if self.help.is_empty() { Ok(()) } else { write!(f, "\n  help: {}", self.help) }
    }
}

/// Longest message or help, in characters: values of the file are quoted in them, and may be long.
const MAX_MESSAGE: usize = 400;

/// Collects mistakes by byte offset.
pub(super) struct Sink<'t> {
    text: &'t str,
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
    list: Vec<(usize, String, String)>,
    left_out: usize,
}

impl<'t> Sink<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        Self {
            text,
            lines: std::iter::once(0).chain(ends).collect(),
            list: Vec::new(),
            left_out: 0,
        }
    }

    pub(super) fn push(&mut self, at: usize, message: String, help: impl Into<String>) {
        if self.is_full() {
            self.left_out += 1;
        } else {
            self.list.push((at, shortened(message), shortened(help.into())));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// No more mistakes will be shown: whoever would think hard about the next one may spare it.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= MAX_DIAGNOSTICS
    }

    /// The line that a byte is on, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at)
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let line = self.line(at);
        let before = self.text.get(self.lines[line - 1]..at).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    pub(super) fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        let mut list = std::mem::take(&mut self.list);
        list.sort();
        list.dedup();
        let last = list.last().map_or(0, |(at, ..)| *at);
        if self.left_out > 0 {
            let message = format!("and {} more mistakes", self.left_out);
            list.push((last, message, "mend these first".into()));
        }
        let diagnostic = |(at, message, help)| {
            let (line, column) = self.place(at);
            Diagnostic { line, column, message, help }
        };
        list.into_iter().map(diagnostic).collect()
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
