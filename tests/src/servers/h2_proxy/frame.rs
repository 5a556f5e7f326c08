//! Frames of HTTP/2 (RFC 9113 section 6), so that its rules can be broken.

/// SETTINGS_MAX_CONCURRENT_STREAMS.
pub const MAX_STREAMS: u16 = 3;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW: u16 = 4;

/// No fault (RFC 9113 section 7).
pub const NO_ERROR: u32 = 0;
/// A stream that was not looked at.
pub const REFUSED_STREAM: u32 = 7;
/// A stream that nobody wants any more.
pub const CANCEL: u32 = 8;
/// The peer asks for too much.
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// The highest number of a stream, and the largest window.
pub const HIGHEST: u32 = u32::MAX >> 1;

const END_HEADERS: u8 = 4;

/// Any frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// DATA.
pub fn data(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(0, 0, stream, payload)
}

/// `:status: 200`; the header block goes on unless this is its `end`.
pub fn answer(stream: u32, end: bool) -> Vec<u8> {
    frame(1, if end { END_HEADERS } else { 0 }, stream, &[0x88])
}

/// RST_STREAM.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(3, 0, stream, &code.to_be_bytes())
}

/// SETTINGS.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(4, 0, 0, &payload)
}

/// PING.
pub fn ping() -> Vec<u8> {
    frame(6, 0, 0, &[7; 8])
}

/// GOAWAY.
pub fn go_away(last: u32, code: u32) -> Vec<u8> {
    frame(7, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// WINDOW_UPDATE; stream 0 is the connection.
pub fn grant(stream: u32, window: u32) -> Vec<u8> {
    frame(8, 0, stream, &window.to_be_bytes())
}

/// CONTINUATION without an end: `x: y`, a thousand times.
pub fn continuation(stream: u32) -> Vec<u8> {
    frame(9, 0, stream, &[0, 1, b'x', 1, b'y'].repeat(1000))
}
