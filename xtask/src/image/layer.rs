//! The one layer of the image.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    path::Path,
};

use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::layout::digest;

/// Files of root's from the first second of 1970: the same files make the same layer, to the byte.
#[derive(Debug)]
pub(super) struct Layer {
    /// As it is stored.
    pub(super) compressed: Vec<u8>,
    /// The digest of what is in there, not compressed.
    pub(super) diff_id: String,
}

impl Layer {
    /// Of files with their paths, without a leading slash, and modes. Directories above them are made.
    pub(super) fn new<'a>(
        files: impl IntoIterator<Item = (&'a str, u32, &'a [u8])>,
    ) -> io::Result<Self> {
        let mut archive = Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for (path, mode, content) in files {
            // The outermost first, and not the empty path that ends the list.
            let mut above: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
            above.pop();
            for directory in above.into_iter().rev() {
                if made.insert(directory) {
                    add(&mut archive, EntryType::Directory, directory, 0o755, &[])?;
                }
            }
            add(
                &mut archive,
                EntryType::Regular,
                Path::new(path),
                mode,
                content,
            )?;
        }
        let content = archive.into_inner()?;
        let mut compressed = GzBuilder::new()
            .mtime(0)
            .write(Vec::new(), Compression::best());
        compressed.write_all(&content)?;
        Ok(Self {
            compressed: compressed.finish()?,
            diff_id: digest(&content),
        })
    }
}

fn add(
    archive: &mut Builder<Vec<u8>>,
    kind: EntryType,
    path: &Path,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use tar::Archive;

    use super::*;

    fn layer() -> Layer {
        Layer::new([
            ("etc/ssl/ca.crt", 0o644, &b"certificates"[..]),
            ("etc/hosts", 0o644, b""),
            ("bin/program", 0o755, b"program"),
        ])
        .unwrap()
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_once() {
        let layer = layer();
        let mut archive = Archive::new(GzDecoder::new(&layer.compressed[..]));
        let entries: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
                assert_eq!(header.mtime().unwrap(), 0);
                let mode = header.mode().unwrap();
                let path = entry.path().unwrap().display().to_string();
                let mut content = String::new();
                entry.read_to_string(&mut content).unwrap();
                format!("{path} {mode:o} {content}")
            })
            .collect();
        assert_eq!(
            entries,
            [
                "etc 755 ",
                "etc/ssl 755 ",
                "etc/ssl/ca.crt 644 certificates",
                "etc/hosts 644 ",
                "bin 755 ",
                "bin/program 755 program",
            ]
        );
    }

    #[test]
    fn the_same_files_make_the_same_layer() {
        assert_eq!(layer().compressed, layer().compressed);
        let mut content = Vec::new();
        GzDecoder::new(&layer().compressed[..])
            .read_to_end(&mut content)
            .unwrap();
        assert_eq!(layer().diff_id, digest(&content));
    }
}
