//! The fault table: what may go wrong, what the workload must see of it and how soon, and what the
//! operator must be told.
//!
//! [`table`] and, for requests of HTTP, [`requests`] have one row per fault, and each row is a test of its own in a world of its own. After
//! every fault nothing may have slipped past the tunnel, and nothing may be left of it in the
//! agent. `docs/faults.md` is the table for readers; a test holds it to this one.

mod document;
mod node;
mod proxy;
mod request;
mod requests;
mod row;
mod stage;
mod table;
mod workload;
