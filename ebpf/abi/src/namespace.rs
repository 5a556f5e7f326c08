//! An enrolled network namespace.

use crate::dns::FRONTS;

/// The agent's listeners in one network namespace, on 127.0.0.1 and ::1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listeners {
    /// Port on 127.0.0.1, host byte order.
    pub port_v4: u16,
    /// Port on ::1, host byte order; 0 where the namespace has no IPv6.
    pub port_v6: u16,
    /// UDP ports on 127.0.0.1 to which queries for name servers go; 0 where there is none.
    pub dns_v4: [u16; FRONTS],
    /// The same on ::1.
    pub dns_v6: [u16; FRONTS],
}

const _: () = assert!(size_of::<Listeners>() == 16 && align_of::<Listeners>() == 2);

#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

    // SAFETY: repr(C), integers of one size, no padding.
    unsafe impl aya::Pod for super::Listeners {}
}
