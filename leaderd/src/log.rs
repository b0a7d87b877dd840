//! Logs: `tracing` to standard error, as text or JSON, filtered by `LEADERD_LOG`; and the limiter for what strangers
//! can cause: once per source and minute.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Environment variable with the filter, such as `info` or `leaderd=debug,quinn=warn`.
pub const FILTER_VARIABLE: &str = "LEADERD_LOG";

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// # Errors
/// If the filter in [`FILTER_VARIABLE`] is none.
pub fn init(format: LogFormat) -> anyhow::Result<()> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&filter).with_context(|| {
        format!("{FILTER_VARIABLE}={filter:?} is no filter; try info, debug or leaderd=debug")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// How long one source stays silent in the log after a line about it.
const QUIET: Duration = Duration::from_secs(60);

/// Most sources remembered; a flood from more addresses than this is logged as one source.
const MAX_SOURCES: usize = 1024;

/// Lets through one line per source, kind and minute.
#[derive(Debug, Default)]
pub struct Limiter {
    last: BTreeMap<(IpAddr, &'static str), Instant>,
}

impl Limiter {
    /// True if a line about this kind of thing from this source may be logged now.
    pub fn allow(&mut self, source: IpAddr, kind: &'static str) -> bool {
        let now = Instant::now();
        let mut key = (source, kind);
        if !self.last.contains_key(&key) && self.last.len() >= MAX_SOURCES {
            self.last.retain(|_, at| now.duration_since(*at) < QUIET);
            if self.last.len() >= MAX_SOURCES {
                key.0 = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
            }
        }
        match self.last.get(&key) {
            Some(at) if now.duration_since(*at) < QUIET => false,
            _ => {
                self.last.insert(key, now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_logged_once_a_minute_and_a_flood_of_sources_stays_bounded() {
        let mut limiter = Limiter::default();
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(limiter.allow(one, "refused"));
        assert!(!limiter.allow(one, "refused"));
        assert!(limiter.allow(one, "malformed"));
        for i in 0..5000u32 {
            limiter.allow(IpAddr::V4(i.into()), "refused");
        }
        assert!(limiter.last.len() <= MAX_SOURCES + 1);
    }
}
