//! Output for people: colour, aligned tables, durations and times.

use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use comfy_table::{ColumnConstraint, Width, presets};
use leaderd_core::time::WallTime;
use leaderd_core::verdict::{Direction, Verdict};
use leaderd_core::wire::limits::MAX_TIME;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde::Serialize;

/// The form of the output.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub color: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
}

impl Output {
    /// Colour only on a terminal, and never with `NO_COLOR` (<https://no-color.org>) or on a dumb terminal.
    pub fn detect(json: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Self { json, color: !json && wanted && io::stdout().is_terminal() }
    }

    pub fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Good => "32",
            Style::Warn => "33",
            Style::Bad => "31",
        };
        if self.color && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Writes and flushes. A closed pipe is no error, and no panic as with `println!`: the reader has seen enough, and the exit code is
    /// the same.
    pub fn print(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    pub fn print_json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.print(&(serde_json::to_string_pretty(value)? + "\n"))?)
    }

    /// True once the reader of our output is gone. Does not write.
    pub fn reader_is_gone(&self) -> bool {
        let stdout = io::stdout();
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds[0]
                .revents()
                .is_some_and(|r| r.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL))
    }
}

/// Columns as wide as their widest cell, two spaces apart, without lines.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<(Style, String)>>,
    min_widths: &'static [u16],
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        let header = header.iter().map(|h| (Style::Dim, (*h).to_owned())).collect();
        Self { rows: vec![header], min_widths: &[] }
    }

    /// A table whose columns are at least this wide, in cells of the terminal.
    pub fn with_min_widths(min_widths: &'static [u16]) -> Self {
        Self { rows: Vec::new(), min_widths }
    }

    pub fn row(&mut self, cells: Vec<(Style, String)>) {
        self.rows.push(cells);
    }

    /// Returns the table as text. `comfy-table` lays it out by the display width of its text; the styles are painted afterwards, since
    /// its own colours need a terminal library.
    pub fn render(&self, out: &Output, indent: usize) -> String {
        let mut layout = comfy_table::Table::new();
        layout.load_style(presets::NOTHING);
        layout.add_rows(self.rows.iter().map(|row| row.iter().map(|(_, text)| text)));
        for column in layout.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let padded = |width: &u16| ColumnConstraint::LowerBoundary(Width::Fixed(width + 2));
        layout.set_constraints(self.min_widths.iter().map(padded));
        let mut text = String::new();
        for (line, row) in layout.lines().zip(&self.rows) {
            let mut rest = line.trim_end();
            text.push_str(&" ".repeat(indent));
            for (style, cell) in row.iter().filter(|(_, cell)| !cell.is_empty()) {
                // A cell is followed by spaces alone up to the next one.
                let at = rest.find(cell.as_str()).unwrap_or(0);
                text.push_str(&rest[..at]);
                text.push_str(&out.paint(*style, cell));
                rest = rest.get(at + cell.len()..).unwrap_or_default();
            }
            text.push_str(rest);
            text.push('\n');
        }
        text
    }
}

/// Returns the time on the clock that events are stamped with.
pub fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// `2026-11-21 09:58:05.123 UTC`
pub fn timestamp(at: WallTime) -> String {
    if at > MAX_TIME {
        return "after the year 9999".to_owned();
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(at.0);
    let text = humantime::format_rfc3339_millis(time).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

/// `3m 12s`, `2d 4h`, `0s`: at most two units, for how long ago something was.
pub fn age(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86400, s % 86400 / 3600),
    }
}

/// Returns the time from `earlier` to `later`; zero if the clocks disagree.
pub fn between(earlier: WallTime, later: WallTime) -> Duration {
    Duration::from_micros(later.0.saturating_sub(earlier.0))
}

/// `142 ms`, `4.2 ms`, `5.31 s`: measured durations.
pub fn measured(d: Duration) -> String {
    let ms = d.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 10_000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.2} s", ms / 1e3)
    }
}

/// `degraded (new-flow, forward)`
pub fn verdict(v: &Verdict) -> String {
    match v {
        Verdict::Unknown => "unknown".to_owned(),
        Verdict::Forwarding => "forwarding".to_owned(),
        Verdict::Suspected => "suspected".to_owned(),
        Verdict::Degraded { cause, direction: None } => format!("degraded ({cause})"),
        Verdict::Degraded { cause, direction: Some(d) } => {
            format!("degraded ({cause}, {})", direction(*d))
        }
    }
}

pub fn direction(d: Direction) -> &'static str {
    match d {
        Direction::Forward => "forward",
        Direction::Return => "return",
    }
}

pub fn verdict_style(v: &Verdict) -> Style {
    match v {
        Verdict::Unknown => Style::Dim,
        Verdict::Forwarding => Style::Good,
        Verdict::Suspected => Style::Warn,
        Verdict::Degraded { .. } => Style::Bad,
    }
}

/// Joins names; `none` if there are none.
pub fn names<T: ToString>(names: &[T]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_show_at_most_two_units() {
        let ages: Vec<String> =
            [0, 59, 60, 192, 3600, 90_061].map(|s| age(Duration::from_secs(s))).into();
        assert_eq!(ages, ["0s", "59s", "1m 0s", "3m 12s", "1h 0m", "1d 1h"]);
    }

    #[test]
    fn times_that_cannot_be_written_are_described() {
        assert_eq!(timestamp(WallTime(0)), "1970-01-01 00:00:00.000 UTC");
        assert_eq!(timestamp(MAX_TIME), "9999-12-31 23:59:59.999 UTC");
        assert_eq!(timestamp(WallTime(MAX_TIME.0 + 1)), "after the year 9999");
        assert_eq!(timestamp(WallTime(u64::MAX)), "after the year 9999");
    }

    #[test]
    fn measured_durations_keep_their_precision_and_no_more() {
        let shown: Vec<String> = [4_230, 142_400, 9_999_000, 12_345_000]
            .map(|us| measured(Duration::from_micros(us)))
            .into();
        assert_eq!(shown, ["4.2 ms", "142 ms", "9999 ms", "12.35 s"]);
    }

    #[test]
    fn colour_does_not_move_columns() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec![(Style::Bad, "long cell".into()), (Style::Plain, "x".into())]);
        let plain = table.render(&Output { json: false, color: false }, 0);
        let coloured = table.render(&Output { json: false, color: true }, 0);
        assert!(coloured.contains("\x1b[31mlong cell\x1b[0m  x"));
        assert_eq!(plain, "A          B\nlong cell  x\n");
    }

    #[test]
    fn columns_are_aligned_by_display_width() {
        let mut table = Table::new(&["A", "B"]);
        for cell in ["東京", "é", ""] {
            table.row(vec![(Style::Bold, cell.into()), (Style::Bold, "x".into())]);
        }
        let text = |color| table.render(&Output { json: false, color }, 1);
        assert_eq!(text(false), " A     B\n 東京  x\n é     x\n       x\n");
        assert!(text(true).contains(" \x1b[1m東京\x1b[0m  \x1b[1mx\x1b[0m\n"), "{}", text(true));
    }

    #[test]
    fn a_table_has_its_least_widths() {
        let mut table = Table::with_min_widths(&[4, 0]);
        table.row(vec![(Style::Plain, "a".into()), (Style::Plain, "b".into())]);
        assert_eq!(table.render(&Output { json: false, color: false }, 0), "a     b\n");
    }
}
