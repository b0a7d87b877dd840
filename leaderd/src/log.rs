//! Logs: `tracing` to standard error, as text or JSON, filtered by `LEADERD_LOG`.

use std::io::IsTerminal;

use anyhow::Context;
use leaderd_core::io::LogLevel;
use leaderd_core::text::printable;
use tracing_subscriber::EnvFilter;

/// Environment variable with the filter, such as `info` or `leaderd=debug,quinn=warn`.
pub const FILTER_VARIABLE: &str = "LEADERD_LOG";

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// What is logged unless [`FILTER_VARIABLE`] says otherwise.
pub const FILTER: &str = "info";

/// It logs every request that fails as an error; an API server that is away is told once, and by us.
const KUBE: &str = "kube_client";

/// `usual` is the filter where [`FILTER_VARIABLE`] is not set.
///
/// # Errors
/// If the filter in [`FILTER_VARIABLE`] is none.
pub fn init(format: LogFormat, usual: &str) -> anyhow::Result<()> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| usual.to_owned());
    let silent = if filter.contains(KUBE) { None } else { Some(format!("{KUBE}=off")) };
    let filter = EnvFilter::try_new(&filter).with_context(|| {
        format!("{FILTER_VARIABLE}={filter:?} is no filter; try info, debug or leaderd=debug")
    })?;
    let filter = match silent {
        Some(silent) => filter.add_directive(silent.parse()?),
        None => filter,
    };
    let ansi = format == LogFormat::Text && std::io::stderr().is_terminal();
    let writer = move || Lines { to: std::io::stderr(), ansi };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => builder.with_ansi(ansi).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Writes each event as one line. Otherwise text from others (such as why a peer closed its connection) could begin a line of its own,
/// or control a terminal. `tracing` writes each event with one call.
struct Lines<W> {
    to: W,
    /// Whether it is a terminal: then the colour sequences of `tracing` stay, and no others.
    ansi: bool,
}

impl<W> Lines<W> {
    fn shown(&self, event: &str) -> String {
        let mut parts = event.split('\x1b');
        let mut shown = printable(parts.next().unwrap_or_default()).into_owned();
        for part in parts {
            let colour = part
                .strip_prefix('[')
                .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'))
                .is_some_and(|rest| rest.starts_with('m'));
            shown.push_str(if self.ansi && colour { "\x1b" } else { "\\u{1b}" });
            shown.push_str(&printable(part));
        }
        shown
    }
}

impl<W: std::io::Write> std::io::Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let (text, end) = match event.strip_suffix(b"\n") {
            Some(text) => (text, "\n"),
            None => (event, ""),
        };
        let line = self.shown(&String::from_utf8_lossy(text)) + end;
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// Logs an event of the core with its fields. `tracing` needs field names at compile time, so those of the core are listed here. Others
/// end up in `more`.
pub fn core_event(level: LogLevel, message: &str, fields: &[(String, String)]) {
    macro_rules! event {
        ($($name:literal)*) => {{
            let of = |name: &str| fields.iter().find(|(k, _)| k == name).map(|(_, v)| tracing::field::display(v));
            let known: &[&str] = &[$($name),*];
            let others = fields.iter().filter(|(k, _)| !known.contains(&k.as_str()));
            let more: Vec<String> = others.map(|(k, v)| format!("{k}={v}")).collect();
            let more = (!more.is_empty()).then(|| more.join(" "));
            let more = more.as_ref().map(tracing::field::display);
            macro_rules! at {
                ($level:ident) => {
                    tracing::event!(
                        target: "leaderd::core",
                        tracing::Level::$level,
                        $($name = of($name),)*
                        more,
                        "{message}"
                    )
                };
            }
            match level {
                LogLevel::Error => at!(ERROR),
                LogLevel::Warn => at!(WARN),
                LogLevel::Info => at!(INFO),
                LogLevel::Debug => at!(DEBUG),
            }
        }};
    }
    event!(
        "location.name" "location.new" "candidate.slot" "verdict.before" "verdict.after"
        "leader.slot" "decision.epoch" "decision.cause" "raft.leader" "raft.term" "peer.name"
        "service.address" "mesh.generation" "voters" "source" "reason" "why" "count" "error"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a subscriber writes, kept.
    #[derive(Clone, Default)]
    struct Buffer(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What a subscriber in JSON writes for an event of the core.
    fn in_json(fields: &[(&str, &str)]) -> serde_json::Value {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || writer.clone())
            .finish();
        let fields: Vec<_> = fields.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        tracing::subscriber::with_default(subscriber, || {
            core_event(LogLevel::Warn, "verdict changed", &fields);
        });
        let bytes = buffer.0.lock().unwrap().clone();
        serde_json::from_slice(&bytes).expect("one JSON object")
    }

    #[test]
    fn what_the_core_says_has_its_fields_beside_the_message() {
        let line =
            in_json(&[("location.name", "cloud"), ("candidate.slot", "1"), ("new.one", "x")]);
        assert_eq!(line["message"], "verdict changed");
        assert_eq!(line["level"], "WARN");
        assert_eq!(
            (&line["location.name"], &line["candidate.slot"]),
            (&"cloud".into(), &"1".into())
        );
        assert_eq!(line["more"], "new.one=x");
        assert!(line.get("peer.name").is_none(), "what is not said is not there: {line}");
        assert!(in_json(&[("why", "because")]).get("more").is_none());
    }

    #[test]
    fn a_peers_words_cannot_begin_a_line_or_steer_a_terminal() {
        for ansi in [false, true] {
            let buffer = Buffer::default();
            let to = buffer.clone();
            let writer = move || Lines { to: to.clone(), ansi };
            let subscriber = tracing_subscriber::fmt().with_ansi(ansi).with_writer(writer).finish();
            let evil = "closed\n2026-11-27T00:00:00Z  INFO leaderd: all is well\r\x1b[2J\u{9b}2J";
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(reason = evil, peer.node = %evil, "{evil}");
                core_event(LogLevel::Warn, evil, &[("why".to_owned(), evil.to_owned())]);
            });
            let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 2, "{text:?}");
            assert!(!text.contains(['\r', '\u{9b}']) && !text.contains("\x1b[2J"), "{text:?}");
            assert_eq!(text.contains('\x1b'), ansi, "its own colours: {text:?}");
        }
    }
}
