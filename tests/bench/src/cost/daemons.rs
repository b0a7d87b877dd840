//! The daemons of a lab, from `/proc`.

use std::collections::BTreeMap;

use anyhow::Result;

/// One daemon, now.
#[derive(Clone, Debug)]
pub struct Daemon {
    pub node: String,
    /// CPU time in ticks: hundredths of a second (USER_HZ, `man 7 time`).
    pub ticks: u64,
    /// Resident memory, KiB.
    pub rss: u64,
}

/// By process id.
pub fn of_lab(lab: &str) -> Result<BTreeMap<u32, Daemon>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let command = read("cmdline");
        let words: Vec<&str> = command.split('\0').collect();
        let is_daemon = words.first().is_some_and(|w| w.ends_with("leaderd"))
            && words.get(1) == Some(&"run")
            && command.contains(lab);
        let Some(node) = words.iter().skip_while(|w| **w != "--node").nth(1) else { continue };
        if !is_daemon {
            continue;
        }
        // Fields after the name in brackets: 12 and 13 are utime and stime (proc(5), counted from 'state' as 1).
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let status = read("status");
        let rss = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        let daemon = Daemon {
            node: (*node).to_owned(),
            ticks: ticks(11) + ticks(12),
            rss: rss.unwrap_or(0),
        };
        all.insert(pid, daemon);
    }
    Ok(all)
}
