//! Documents as operators write them.
//!
//! The types hold what may stand in a document and check each value by itself; what several
//! values or documents mean together is for `compile`.

pub(super) mod metadata;
pub(super) mod tunnel;
pub(super) mod value;

/// Kinds of the API that come with later versions.
pub(super) const LATER_KINDS: &[&str] = &[
    "DestinationRule",
    "Secret",
    "Service",
    "ServiceEntry",
    "VirtualService",
];
