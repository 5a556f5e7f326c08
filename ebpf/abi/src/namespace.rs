//! An enrolled network namespace.

/// The agent's listeners in one network namespace, on 127.0.0.1 and ::1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listeners {
    /// Port on 127.0.0.1, host byte order.
    pub port_v4: u16,
    /// Port on ::1, host byte order; 0 where the namespace has no IPv6.
    pub port_v6: u16,
}

const _: () = assert!(size_of::<Listeners>() == 4 && align_of::<Listeners>() == 2);

#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

    // SAFETY: repr(C), two integers, no padding.
    unsafe impl aya::Pod for super::Listeners {}
}
