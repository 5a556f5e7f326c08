//! What a connection takes while nothing happens on it.

use super::Way;

/// The size of the future that a method gives.
fn size_of_future<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_connection_is_small() {
    let size = size_of_future(Way::serve);
    assert!(size <= 4352, "{size} bytes");
}
