use std::fmt;

/// Why no toolchain can compile the eBPF programs: what each way to one lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The ways that were tried, the preferred one first. Completing one of them is enough.
    pub ways: Vec<Way>,
}

/// One way to a toolchain, and what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// What the way is called in messages.
    pub name: &'static str,
    /// Everything it lacks; never empty.
    pub pieces: Vec<Piece>,
}

/// Something a toolchain lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What is missing or unfit, with the place where it was looked for.
    pub what: String,
    /// The command that gets it.
    pub how: String,
}

impl Piece {
    pub(crate) fn new(what: impl Into<String>, how: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            how: how.into(),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no toolchain here can compile the eBPF programs; on Debian `cargo xtask setup` \
             provides one, elsewhere complete one of these:",
        )?;
        for Way { name, pieces } in &self.ways {
            write!(f, "\n- {name}:")?;
            for Piece { what, how } in pieces {
                write!(f, "\n    {what}: {how}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_named_with_the_command_that_gets_it() {
        let missing = Missing {
            ways: vec![
                Way {
                    name: "one",
                    pieces: vec![Piece::new("no a", "get a")],
                },
                Way {
                    name: "two",
                    pieces: vec![Piece::new("no b", "get b"), Piece::new("no c", "get c")],
                },
            ],
        };
        let text = missing.to_string();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "- one:",
                "    no a: get a",
                "- two:",
                "    no b: get b",
                "    no c: get c"
            ]
        );
    }
}
