//! Where a body ends (RFC 9112 sections 6 and 7), strictly.

use super::head::Framing;

/// The longest line with the size of a chunk, in bytes; extensions make it longer than a number.
const MAX_SIZE_LINE: usize = 1024;

/// The longest trailer section, in bytes.
const MAX_TRAILERS: usize = 16 * 1024;

/// How many fields it may have.
pub(super) const MAX_TRAILER_FIELDS: usize = 64;

/// How much of a body is still to come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Body(State);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// The line with the size of the next chunk.
    ChunkSize,
    /// So much more of a chunk.
    ChunkData(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Behind the last chunk.
    Trailers,
    Done,
    /// So many bytes.
    Length(u64),
    UntilClose,
}

/// What stands at the beginning of some bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::relay) enum Piece {
    /// So many bytes of the body itself.
    Data(usize),
    /// Nothing: the body is over.
    End,
    /// So many bytes that only say where the body goes on.
    Framing(usize),
    /// Too little.
    More,
    /// So many bytes of trailer section, its empty line included.
    Trailers(usize),
}

/// Why a body cannot be read on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// What should say how long the next chunk is says nothing, or more than it should.
    #[error("the size of a chunk is invalid")]
    ChunkSize,
    /// A chunk is longer than its size.
    #[error("a chunk does not end where its size has it")]
    ChunkEnd,
    /// The stream ended within the body.
    #[error("the body ended early")]
    CutShort,
    /// What stands behind the last chunk are no fields.
    #[error("the trailer section is invalid or too long")]
    Trailers,
}

impl Body {
    /// All of a body with this framing.
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::None => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        })
    }

    /// Whether nothing more belongs to it.
    pub fn is_over(&self) -> bool {
        matches!(self.0, State::Done | State::Length(0))
    }

    /// Looks at what `bytes` begin with, and goes past it. `ended`: nothing comes behind `bytes`.
    pub(in crate::relay) fn next(&mut self, bytes: &[u8], ended: bool) -> Result<Piece, BodyError> {
        if self.is_over() {
            return Ok(Piece::End);
        }
        if bytes.is_empty() {
            return match self.0 {
                State::UntilClose if ended => Ok(Piece::End),
                _ if ended => Err(BodyError::CutShort),
                _ => Ok(Piece::More),
            };
        }
        let piece = match self.0 {
            State::Done => Piece::End,
            State::Length(left) => {
                let taken = at_most(left, bytes);
                self.0 = State::Length(left - taken as u64);
                Piece::Data(taken)
            }
            State::UntilClose => Piece::Data(bytes.len()),
            State::ChunkSize => match chunk_size(bytes)? {
                Some((size, line)) => {
                    self.0 = match size {
                        0 => State::Trailers,
                        size => State::ChunkData(size),
                    };
                    Piece::Framing(line)
                }
                None => Piece::More,
            },
            State::ChunkData(left) => {
                let taken = at_most(left, bytes);
                self.0 = match left - taken as u64 {
                    0 => State::ChunkEnd,
                    left => State::ChunkData(left),
                };
                Piece::Data(taken)
            }
            State::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.0 = State::ChunkSize;
                    Piece::Framing(2)
                }
                [b'\r'] => Piece::More,
                _ => return Err(BodyError::ChunkEnd),
            },
            State::Trailers => match trailers(bytes)? {
                Some(length) => {
                    self.0 = State::Done;
                    Piece::Trailers(length)
                }
                None => Piece::More,
            },
        };
        if piece == Piece::More && ended {
            return Err(BodyError::CutShort);
        }
        Ok(piece)
    }

    /// Whether what has come of it already breaks no rule.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(mut self, mut bytes: &[u8]) -> Result<(), BodyError> {
        loop {
            match self.next(bytes, false)? {
                Piece::Data(length) | Piece::Framing(length) => bytes = &bytes[length..],
                Piece::Trailers(_) | Piece::End | Piece::More => return Ok(()),
            }
        }
    }
}

fn at_most(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

/// The size of a chunk, and the length of the line that tells it. What is wrong is wrong before
/// the line is whole.
fn chunk_size(bytes: &[u8]) -> Result<Option<(u64, usize)>, BodyError> {
    let wrong = BodyError::ChunkSize;
    let digits = bytes
        .iter()
        .position(|byte| !byte.is_ascii_hexdigit())
        .unwrap_or(bytes.len());
    if digits == 0 || digits > 16 {
        return Err(wrong);
    }
    let rest = &bytes[digits..];
    let extension = match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) => rest[..end].strip_suffix(b"\r").ok_or(wrong)?,
        None => rest.strip_suffix(b"\r").unwrap_or(rest),
    };
    let extension_is_right = match extension.trim_ascii_start() {
        [] => extension.is_empty() || extension.len() == rest.len(),
        [first, ..] => *first == b';',
    };
    let has_controls = extension
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t');
    if !extension_is_right || has_controls || digits + extension.len() > MAX_SIZE_LINE {
        return Err(wrong);
    }
    if extension.len() + 2 > rest.len() {
        return Ok(None);
    }
    let size = str::from_utf8(&bytes[..digits]).map_err(|_| wrong)?;
    let size = u64::from_str_radix(size, 16).map_err(|_| wrong)?;
    Ok(Some((size, digits + extension.len() + 2)))
}

/// The length of a trailer section, its empty line included.
fn trailers(bytes: &[u8]) -> Result<Option<usize>, BodyError> {
    let mut line = 0;
    while let Some(end) = bytes[line..].iter().position(|byte| *byte == b'\n') {
        match bytes[line..line + end].strip_suffix(b"\r") {
            None => return Err(BodyError::Trailers),
            Some([]) if line + end + 1 > MAX_TRAILERS => return Err(BodyError::Trailers),
            Some([]) => return are_fields(&bytes[..line + end + 1]).map(Some),
            Some(_) => line += end + 1,
        }
    }
    if bytes.len() > MAX_TRAILERS {
        return Err(BodyError::Trailers);
    }
    Ok(None)
}

/// The length of a trailer section whose fields can be told apart.
fn are_fields(trailers: &[u8]) -> Result<usize, BodyError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    match httparse::parse_headers(trailers, &mut fields) {
        Ok(httparse::Status::Complete((length, _))) if length == trailers.len() => Ok(length),
        _ => Err(BodyError::Trailers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a chunked body in two pieces, cut everywhere, and gives what it holds.
    fn read(text: &str) -> Result<String, BodyError> {
        let all = text.as_bytes();
        let mut first = None;
        for cut in 0..=all.len() {
            let mut body = Body::new(Framing::Chunked);
            let mut data = Vec::new();
            let mut at = 0;
            let mut until = cut;
            let result = loop {
                match body.next(&all[at..until], until == all.len()) {
                    Ok(Piece::Data(length)) => {
                        data.extend_from_slice(&all[at..at + length]);
                        at += length;
                    }
                    Ok(Piece::Framing(length) | Piece::Trailers(length)) => at += length,
                    Ok(Piece::More) => until = all.len(),
                    Ok(Piece::End) => break Ok(String::from_utf8(data).unwrap()),
                    Err(error) => break Err(error),
                }
            };
            let expected = first.get_or_insert_with(|| result.clone());
            assert_eq!(*expected, result, "{text:?} cut at {cut}");
        }
        first.unwrap()
    }

    #[test]
    fn chunks_are_read_however_they_arrive() {
        assert_eq!(read("0\r\n\r\n").as_deref(), Ok(""));
        assert_eq!(
            read("3\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n").as_deref(),
            Ok("abc0123456789")
        );
        assert_eq!(
            read("1;name=value\r\na\r\n1 ; q=\"x\"\r\nb\r\n0\r\nx: y\r\n\r\n").as_deref(),
            Ok("ab")
        );
    }

    #[test]
    fn wrong_chunks_are_refused_however_they_arrive() {
        for (text, expected) in [
            ("", BodyError::CutShort),
            ("3\r\nab", BodyError::CutShort),
            ("0\r\n", BodyError::CutShort),
            ("zz\r\n", BodyError::ChunkSize),
            ("-1\r\n", BodyError::ChunkSize),
            ("+1\r\na\r\n0\r\n\r\n", BodyError::ChunkSize),
            ("0x1\r\na\r\n0\r\n\r\n", BodyError::ChunkSize),
            (" 1\r\na\r\n0\r\n\r\n", BodyError::ChunkSize),
            ("1 \r\na\r\n0\r\n\r\n", BodyError::ChunkSize),
            ("1\na\r\n0\r\n\r\n", BodyError::ChunkSize),
            ("1;a\rb\r\na\r\n0\r\n\r\n", BodyError::ChunkSize),
            ("1;\0\r\na\r\n0\r\n\r\n", BodyError::ChunkSize),
            ("\r\n", BodyError::ChunkSize),
            ("10000000000000000\r\n", BodyError::ChunkSize),
            ("1\r\nab\r\n0\r\n\r\n", BodyError::ChunkEnd),
            ("1\r\na\n0\r\n\r\n", BodyError::ChunkEnd),
            ("0\r\nx: y\n\r\n", BodyError::Trailers),
            ("0\r\nx y\r\n\r\n", BodyError::Trailers),
            ("0\r\nx : y\r\n\r\n", BodyError::Trailers),
            ("0\r\nx: y\r\n z\r\n\r\n", BodyError::Trailers),
        ] {
            assert_eq!(read(text), Err(expected), "{text:?}");
        }
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_SIZE_LINE));
        assert_eq!(read(&long[..]), Err(BodyError::ChunkSize));
    }

    #[test]
    fn what_has_come_is_checked_without_being_used() {
        let body = Body::new(Framing::Chunked);
        assert_eq!(body.check(b""), Ok(()));
        assert_eq!(body.check(b"3\r\nab"), Ok(()));
        assert_eq!(body.check(b"3\r\nabc\r\ng"), Err(BodyError::ChunkSize));
        assert_eq!(body.check(b"0\r\n\r\nGET / HTTP/1.1\r\n"), Ok(()));
    }
}
