//! The kernel side of Underpass.
//!
//! `connect` sends a workload's external TCP connection to the agent's listener in the same
//! network namespace and keeps the original destination with the socket; `flow` writes it where
//! the agent finds it, when the SYN is answered; `peername` lets the workload see the peer it asked
//! for; `udp` refuses datagrams that would walk past what TCP is under; `dns` passes on what
//! workloads are answered, `front` sends to the agent what they ask; `netns` tells the agent which namespace it is in, on kernels with
//! no other way; `node` leaves alone what is on the node's own network. Every program stays small: the verifiers of all kernels from
//! 5.10 on must take it.

#![no_std]
#![no_main]

mod connect;
mod dns;
mod flow;
mod front;
mod listener;
mod maps;
mod netns;
mod node;
mod peername;
mod sockaddr;
mod socket;
mod task;
mod udp;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here can panic: the verifier would not take a program that loops.
    loop {}
}

// `bpf_sk_lookup_tcp` and the socket storage helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
