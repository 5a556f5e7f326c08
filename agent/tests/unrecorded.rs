//! What is not recorded in a trace allocates nothing.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use underpass::telemetry::Trail;
use underpass::trace::{Finished, Kind, Sampler, Sink, Tracer};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn take(&self, _: Finished) {}
}

fn tracer(sampler: &str, share: &str) -> Tracer {
    let sampler = Sampler::parse(sampler, Some(share)).expect("a sampler");
    Tracer::new(sampler, Arc::new(Nowhere))
}

/// Allocations for a connection, and for two requests on it, one of which tells of a trace.
fn allocations(tracer: &Tracer, parent: &[u8]) -> (usize, usize) {
    let before = ALLOCATIONS.get();
    let src = "10.0.0.1:4000".parse().expect("an address");
    let mut trail = Trail::new(tracer.clone(), Instant::now(), src);
    let begun = ALLOCATIONS.get();
    for parents in [&[parent][..], &[]] {
        let mut request = trail.request(parents.iter().copied());
        request.text("underpass.target", Some(format_args!("{src}")));
        request.number("http.response.status_code", 200);
        drop(request.child("tunnel", Kind::Internal));
        assert_eq!(request.onward().is_some(), request.is_recorded());
        drop(black_box(request));
    }
    drop(black_box(trail));
    (begun - before, ALLOCATIONS.get() - begun)
}

#[test]
fn what_is_not_recorded_allocates_nothing() {
    let traced = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let untraced = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let off = Tracer::default();
    let joins = tracer("parentbased_always_off", "1");
    let rarely = tracer("parentbased_traceidratio", "0");
    // The first random numbers of a thread may take more than others do.
    allocations(&rarely, untraced);
    assert_eq!(allocations(&off, traced), (0, 0));
    // What is known of a connection is kept until it is known whether it is recorded.
    for tracer in [&joins, &rarely] {
        assert_eq!(allocations(tracer, untraced), (1, 0), "{tracer:?}");
    }
    let (_, recorded) = allocations(&joins, traced);
    assert!(recorded > 0, "it does count");
}
