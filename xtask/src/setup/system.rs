//! What kind of machine this is, and what programs it has.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::packages::PACKAGES;

/// Whether this machine runs Debian or a descendant of it.
pub(super) fn runs_debian() -> bool {
    is_debian(&fs::read_to_string("/etc/os-release").unwrap_or_default())
}

/// Whether `/etc/os-release` describes Debian or a descendant of it.
fn is_debian(os_release: &str) -> bool {
    ["ID", "ID_LIKE"]
        .into_iter()
        .filter_map(|name| field(os_release, name))
        .any(|value| value.split_ascii_whitespace().any(|id| id == "debian"))
}

/// A field of os-release(5), without its quotes.
fn field<'a>(os_release: &'a str, name: &str) -> Option<&'a str> {
    os_release.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix('=')?;
        Some(value.trim().trim_matches(['"', '\'']))
    })
}

/// What building and testing need and this machine lacks, in words. For machines whose packages we
/// do not know: there it is up to their owner to install it.
pub(super) fn missing_programs() -> String {
    let missing: Vec<String> = PACKAGES
        .iter()
        .filter_map(|package| Some((package.program?, package.reason)))
        .filter(|(program, _)| find(Path::new(program)).is_none())
        .map(|(program, reason)| format!("{program} ({reason})"))
        .collect();
    if missing.is_empty() {
        "all there".to_owned()
    } else {
        format!(
            "not Debian, so install these yourself: {}",
            missing.join(", ")
        )
    }
}

/// The installed program of this name.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Servers live where the PATH of ordinary users does not lead.
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|program| program.is_file())
}

/// The release of Debian, such as `bookworm`.
pub(super) fn codename() -> Option<String> {
    let os_release = fs::read_to_string("/etc/os-release").ok()?;
    field(&os_release, "VERSION_CODENAME").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_descendants_are_recognised() {
        assert!(is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
    }

    #[test]
    fn others_are_not() {
        assert!(!is_debian(""));
        assert!(!is_debian("ID=fedora\nNAME=debian\n"));
        assert!(!is_debian("ID=rocky\nID_LIKE=\"rhel centos fedora\"\n"));
        assert!(!is_debian("VARIANT_ID=debian\nID=notdebian\n"));
    }

    #[test]
    fn programs_are_looked_for_where_servers_live_too() {
        assert!(find(Path::new("sh")).is_some());
        assert_eq!(find(Path::new("no-such-program")), None);
    }
}
