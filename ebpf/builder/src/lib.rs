//! Finds a toolchain that can compile the eBPF programs, and compiles them with it.
//!
//! Two ways lead there. The distribution's `rustc` comes with a core library compiled for BPF
//! (Debian: packages `rustc-web` and `libstd-rust-web-dev-bpf`); rustup's nightly compiles core
//! from its `rust-src` component. Both link with `bpf-linker`, whose LLVM must not be older than
//! the compiler's. [`Toolchain::find`] takes the first way that is complete, or says what each of
//! them lacks.
//!
//! `agent/build.rs` calls this on every build; `cargo xtask setup` provides what it looks for.

pub mod linker;
pub mod rustc;

mod compile;
mod missing;
mod toolchain;
mod workspace;

pub use compile::Object;
pub use missing::{Missing, Piece, Way};
pub use toolchain::{DISTRIBUTION_RUSTC, Toolchain};
pub use workspace::target_dir;

/// Target triple of the eBPF programs: the little-endian BPF of every machine we run on.
pub const BPF_TARGET: &str = "bpfel-unknown-none";

/// The oldest compiler that takes the eBPF crate: the workspace's `rust-version`.
pub const MINIMUM_RUST: &str = env!("CARGO_PKG_RUST_VERSION");
