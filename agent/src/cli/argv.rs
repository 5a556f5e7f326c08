//! Keeps secrets out of the process list.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use procfs::process::Process;

/// The password of a proxy URL, or its whole userinfo where there is only one part (RFC 3986
/// section 3.2.1), as it is written there.
pub(super) fn secret_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (userinfo, _) = authority.rsplit_once('@')?;
    let (_, password) = userinfo.split_once(':').unwrap_or(("", userinfo));
    Some(password)
}

/// Overwrites every occurrence of `secret` in this process's own arguments, as `ps` and
/// `/proc/PID/cmdline` show them, with asterisks.
///
/// # Errors
/// The process cannot read or write its own memory through /proc, as where /proc is not mounted.
pub(super) fn hide(secret: &str) -> io::Result<()> {
    if secret.is_empty() {
        return Ok(());
    }
    let start = Process::myself()
        .and_then(|process| process.stat())
        .map_err(io::Error::other)?
        .arg_start
        .ok_or_else(|| io::Error::other("the kernel does not say where the arguments are"))?;
    let arguments = fs::read("/proc/self/cmdline")?;
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    let stars = vec![b'*'; secret.len()];
    for at in occurrences(&arguments, secret.as_bytes()) {
        memory.write_all_at(&stars, start + at as u64)?;
    }
    Ok(())
}

fn occurrences(haystack: &[u8], needle: &[u8]) -> Vec<usize> {
    haystack
        .windows(needle.len())
        .enumerate()
        .filter(|(_, window)| *window == needle)
        .map(|(at, _)| at)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_found_as_it_is_written() {
        for (url, secret) in [
            ("http://u:p%40w@proxy:3128", Some("p%40w")),
            ("http://u:p@w@proxy:3128/x@y", Some("p@w")),
            ("http://token@proxy", Some("token")),
            ("http://proxy:3128", None),
            ("proxy:3128", None),
        ] {
            assert_eq!(secret_of(url), secret, "{url}");
        }
    }

    #[test]
    fn every_occurrence_is_found() {
        assert_eq!(occurrences(b"a\0user:pw@x\0pw\0", b"pw"), [7, 12]);
        assert_eq!(occurrences(b"aaa", b"aa"), [0, 1]);
        assert!(occurrences(b"x", b"xyz").is_empty());
    }
}
