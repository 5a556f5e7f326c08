//! The archive format of an initial RAM disk: cpio's `newc`, as the kernel documents it in
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive on its way.
#[derive(Debug)]
pub(super) struct Archive<W> {
    to: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, entries: 0 }
    }

    /// Adds a directory; its parents must be there. The path begins with no slash.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, &[])
    }

    /// Adds a file that may be executed.
    pub(super) fn program(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, PROGRAM, content)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let number = |size: usize| u32::try_from(size).map_err(io::Error::other);
        let fields = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // time of last change
            number(content.len())?,
            0, // device, major and minor
            0,
            0, // device that it stands for, major and minor
            0,
            number(path.len() + 1)?,
            0, // checksum, of another variant
        ];
        self.to.write_all(b"070701")?;
        for field in fields {
            write!(self.to, "{field:08X}")?;
        }
        self.to.write_all(path.as_bytes())?;
        self.to.write_all(b"\0")?;
        // Header and name together, and content, are padded to four bytes.
        self.pad(110 + path.len() + 1)?;
        self.to.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        let missing = length.next_multiple_of(4) - length;
        self.to.write_all(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_documented_layout() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").unwrap();
        archive.program("bin/a", b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let directory = "070701\
            00000001000041ED0000000000000000000000010000000000000000\
            0000000000000000000000000000000000000004\
            00000000bin\0\0\0";
        let program = "070701\
            00000002000081ED0000000000000000000000010000000000000005\
            0000000000000000000000000000000000000006\
            00000000bin/a\0hello\0\0\0";
        assert_eq!(&text[..directory.len()], directory);
        assert_eq!(&text[directory.len()..][..program.len()], program);
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"));
        assert_eq!(text.len() % 4, 0);
    }
}
