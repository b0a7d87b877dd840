//! Sysctls as files below `/proc/sys`, or below what `LEADERD_PROC_SYS` names.
//!
//! A container has `/proc/sys` read-only unless it is privileged, and its runtime refuses to mount anything inside `/proc`. The
//! host's `/proc/sys/net`, mounted elsewhere, stays writable: `LEADERD_PROC_SYS` is the directory that holds it as `net`.

use std::io;
use std::path::{Component, Path, PathBuf};

const ROOT: &str = "/proc/sys";
const ROOT_VARIABLE: &str = "LEADERD_PROC_SYS";

const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";

/// The route was learnt from a router (`linux/ipv6_route.h`).
const RTF_DEFAULT: u32 = 0x0001_0000;

fn root() -> PathBuf {
    std::env::var_os(ROOT_VARIABLE)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(ROOT), PathBuf::from)
}

fn file(path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    if relative.components().all(|c| matches!(c, Component::Normal(_))) {
        Ok(root().join(relative))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no path of a sysctl")))
    }
}

/// Reads a sysctl.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &str) -> io::Result<String> {
    std::fs::read_to_string(file(path)?).map(|value| value.trim_end().to_owned())
}

/// Writes a sysctl. Logs a warning first if that costs the host its default route.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &str, value: &str) -> io::Result<()> {
    if path == FORWARDING6 && value != "0" && read(path).is_ok_and(|now| now == "0") {
        let uplinks = uplinks_that_forwarding_ends();
        if !uplinks.is_empty() {
            let remedy: Vec<String> = uplinks.iter().map(|dev| accept_all(dev)).collect();
            tracing::warn!(
                interfaces = uplinks.join(" "),
                remedy = remedy.join(" "),
                "forwarding IPv6 ends default routes from router advertisements"
            );
        }
    }
    std::fs::write(file(path)?, value)
}

/// Returns the devices whose default route came by a router advertisement and is removed when forwarding is switched on: a router
/// ignores other routers unless `accept_ra` is 2 (`rt6_purge_dflt_routers` in `net/ipv6/route.c`).
fn uplinks_that_forwarding_ends() -> Vec<String> {
    // Without the table there is no warning: that is no reason not to write.
    let table = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let mut devices: Vec<&str> = table.lines().filter_map(advertised).collect();
    devices.sort_unstable();
    devices.dedup();
    let ends = |dev: &&str| {
        read(&format!("net/ipv6/conf/{dev}/accept_ra")).is_ok_and(|accept| accept != "2")
    };
    devices.into_iter().filter(ends).map(str::to_owned).collect()
}

/// Returns the device of a default route that the kernel itself learnt. The ninth word of a line is its flags, the tenth its device.
fn advertised(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip(8);
    let flags = u32::from_str_radix(words.next()?, 16).ok()?;
    words.next().filter(|_| flags & RTF_DEFAULT != 0)
}

/// Returns the setting for sysctl(8), in which a dot in a device's name is written as a slash.
fn accept_all(dev: &str) -> String {
    format!("net.ipv6.conf.{}.accept_ra=2", dev.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertised_default_route_is_distinguished_from_others() {
        let all = "00000000000000000000000000000000 00";
        let line = |flags, dev| {
            let via = "fe80000000000000e84505fffeb8239c";
            format!("{all} {all} {via} 00000400 00000001 00000000 {flags} {dev}")
        };
        assert_eq!(advertised(&line("00450003", "eth0")), Some("eth0"));
        assert_eq!(advertised(&line("00000003", "eth0")), None);
        assert_eq!(advertised(""), None);
        assert_eq!(accept_all("eth0.100"), "net.ipv6.conf.eth0/100.accept_ra=2");
    }
}
