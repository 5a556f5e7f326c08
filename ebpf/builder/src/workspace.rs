use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// The target directory cargo uses for the workspace at `root`, whichever way it was configured.
///
/// # Errors
/// If cargo cannot be run or cannot read the workspace.
pub fn target_dir(cargo: &OsStr, root: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root)
        .output()
        .with_context(|| format!("{} does not start", cargo.display()))?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    let metadata = String::from_utf8(output.stdout).context("cargo metadata answers")?;
    let directory = string_field(&metadata, "target_directory")
        .context("cargo metadata names no target directory")?;
    Ok(directory.into())
}

/// The value of a string field of a JSON document, where the field's name is unique and its value
/// is a path: cargo escapes only `"` and `\` in those.
fn string_field(json: &str, name: &str) -> Option<String> {
    let (_, rest) = json.split_once(&format!("\"{name}\":\""))?;
    let mut value = String::new();
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return Some(value),
            '\\' => match characters.next()? {
                escaped @ ('"' | '\\') => value.push(escaped),
                _ => return None,
            },
            character => value.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_fields_are_read() {
        let json = r#"{"packages":[],"target_directory":"/a \"b\"/c\\d","version":1}"#;
        assert_eq!(
            string_field(json, "target_directory").as_deref(),
            Some(r#"/a "b"/c\d"#)
        );
        assert_eq!(string_field(json, "build_directory"), None);
        assert_eq!(
            string_field(r#"{"target_directory":"/cut"#, "target_directory"),
            None
        );
    }

    #[test]
    fn cargo_names_the_target_directory_of_this_workspace() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .unwrap();
        let directory = target_dir(OsStr::new(env!("CARGO")), root).unwrap();
        assert!(directory.is_absolute(), "{directory:?}");
    }
}
