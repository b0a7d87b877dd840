//! What is wrong with a mesh file, where, and what to do.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

/// How many mistakes are reported at most; the last one says how many were left out.
pub const MAX_DIAGNOSTICS: usize = 100;

/// Longest line of the file that [`report`] shows, in bytes.
const MAX_LINE: usize = 4096;

/// One mistake. `{}` shows it without the file's name and text; [`report`] shows it with both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
    /// What to do.
    pub help: String,
    /// The bytes of the file that are wrong.
    #[serde(skip)]
    pub span: Range<usize>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)?;
        if self.help.is_empty() { Ok(()) } else { write!(f, "\n  help: {}", self.help) }
    }
}

/// Returns the mistakes as compilers show them: the line, a mark under the mistake, and what to do. `file` is the name of the file and
/// `text` what it holds; `color` adds escape sequences for a terminal.
pub fn report(file: &str, text: &str, mistakes: &[Diagnostic], color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let one = |d: &Diagnostic| {
        let title = Level::ERROR.primary_title(&d.message);
        let start = d.span.start.min(text.len());
        let begin = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line = text[begin..].lines().next().unwrap_or_default();
        let group = if line.is_empty() || line.len() > MAX_LINE {
            let place = Origin::path(file).line(d.line).char_column(d.column);
            Group::with_title(title).element(place)
        } else {
            let span = start - begin..d.span.end.saturating_sub(begin).min(line.len());
            let mark = AnnotationKind::Primary.span(span);
            title.element(Snippet::source(line).path(file).line_start(d.line).annotation(mark))
        };
        let help = (!d.help.is_empty()).then(|| Level::HELP.message(&d.help));
        renderer.render(&[group.elements(help)]) + "\n"
    };
    mistakes.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Returns the bytes of the word, text or list that begins at this byte. It ends with its line.
fn token(text: &str, at: usize) -> Range<usize> {
    let line = text.get(at..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let through = |end: char| line[1..].find(end).map_or(line.len(), |n| n + 2);
    let ends = |c: char| c.is_whitespace() || ",=]}".contains(c);
    let length = match line.chars().next() {
        Some('"') => through('"'),
        Some('[') => through(']'),
        _ => line.find(ends).unwrap_or(line.len()),
    };
    at..at + length
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

    /// Whether no more mistakes will be shown: a check that takes long may be left out.
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
            Diagnostic { line, column, message, help, span: token(self.text, at) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_shown_with_its_line_and_a_mark() {
        let text = "[mesh]\nname = \"home\"\ngeneration = 0\n[locations.a]\nprefixes = [\"10.0.0.0/8\", \"10.1.0.1/16\"]\n";
        let mut sink = Sink::new(text);
        let at = |what: &str| text.find(what).unwrap();
        sink.push(at("0\n"), "`mesh.generation`: 0 is out of range".into(), "write 1 or more");
        sink.push(
            at("\"10.1"),
            "10.1.0.1/16 has bits set behind its length".into(),
            "write \"10.1.0.0/16\"",
        );
        sink.push(at("a]"), "location a has no node".into(), "");
        sink.push(text.len(), "the file is \u{1b}[31mincomplete".into(), "");
        let mistakes = sink.into_diagnostics();
        insta::assert_snapshot!("shown", report("mesh.toml", text, &mistakes, false));
        assert!(report("mesh.toml", text, &mistakes, true).contains("\u{1b}["));
    }

    #[test]
    fn any_place_of_any_text_is_shown() {
        let text = format!("\"äöü\n\r\n[{}\n\u{1b}[1m = ü\t]", "x".repeat(5000));
        for at in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
            let mut sink = Sink::new(&text);
            sink.push(at, "wrong".into(), "mend it");
            let shown = report("mesh.toml", &text, &sink.into_diagnostics(), false);
            assert!(shown.contains("mesh.toml:") && !shown.contains('\u{1b}'), "{at}: {shown}");
        }
    }
}
