//! The programs on the hooks of one cgroup.

use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};

use super::CaptureError;
use super::pins::Pins;

/// The programs on one cgroup; dropping it takes them off, unless they are to outlive us.
#[derive(Debug)]
pub struct Attachment {
    /// Dropped from the first to the last: `connect` before sockops, so that nothing is redirected
    /// without an entry.
    links: Vec<(&'static str, Link)>,
    /// Never pinned.
    _only_here: Vec<FdLink>,
    pins: Option<Pins>,
    key: PathBuf,
}

/// What came of attaching a program.
pub(super) type Attached = (&'static str, Result<FdLink, LinkError>);

fn link((program, link): Attached) -> Result<FdLink, CaptureError> {
    link.map_err(|source| CaptureError::Link { program, source })
}

#[derive(Debug)]
enum Link {
    Held(FdLink),
    Pinned(PinnedLink),
    /// Between the two; no link stays so.
    Moving,
}

impl Attachment {
    /// Of links in the order in which they were attached, and those that are gone with the agent in
    /// any case; `key` as for [`Capture::attach`](super::Capture::attach).
    pub(super) fn new(
        links: Vec<Attached>,
        only_here: Vec<Attached>,
        key: &Path,
    ) -> Result<Self, CaptureError> {
        let mut held = Vec::with_capacity(links.len());
        for attached in links.into_iter().rev() {
            let program = attached.0;
            held.push((program, Link::Held(link(attached)?)));
        }
        Ok(Self {
            links: held,
            _only_here: only_here.into_iter().map(link).collect::<Result<_, _>>()?,
            pins: None,
            key: key.to_owned(),
        })
    }

    /// Decides whether the programs stay on their hooks when this process ends. They then refuse
    /// what they would have redirected.
    ///
    /// # Errors
    /// They cannot be pinned, or a pin cannot be removed.
    pub fn set_outliving(&mut self, outliving: bool) -> Result<(), CaptureError> {
        match (outliving, self.pins.take()) {
            (true, None) => {
                let pins = Pins::create(&self.key)?;
                // Kept even if a pin fails: what was pinned before must be found again.
                let pins = self.pins.insert(pins);
                for (program, link) in &mut self.links {
                    let path = pins.path(program);
                    match std::mem::replace(link, Link::Moving) {
                        Link::Held(held) => {
                            *link = Link::Pinned(held.pin(&path).map_err(|error| {
                                CaptureError::Pin {
                                    path,
                                    source: std::io::Error::other(error),
                                }
                            })?);
                        }
                        other => *link = other,
                    }
                }
            }
            (false, Some(pins)) => {
                for (program, link) in &mut self.links {
                    match std::mem::replace(link, Link::Moving) {
                        Link::Pinned(pinned) => {
                            *link =
                                Link::Held(pinned.unpin().map_err(|source| CaptureError::Pin {
                                    path: pins.path(program),
                                    source,
                                })?);
                        }
                        other => *link = other,
                    }
                }
            }
            (_, pins) => self.pins = pins,
        }
        Ok(())
    }
}

/// Takes off their hooks the programs that earlier agents have pinned under the same key, now that
/// `ours` are on: so there is no moment without any. Returns on how many cgroups there were some.
///
/// # Errors
/// One of their programs cannot be taken off.
pub fn supersede<'a>(
    key: &Path,
    ours: impl Iterator<Item = &'a Attachment>,
) -> Result<usize, CaptureError> {
    let own: Vec<&Pins> = ours.filter_map(|ours| ours.pins.as_ref()).collect();
    Pins::supersede(key, &own)
}
