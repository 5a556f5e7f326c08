//! Proxies that speak HTTP/2 badly, or end what they have begun: each tunnel that need not suffer
//! does not, those that must end do so in bounded time, and the agent's memory and time stay its own.
//!
//! The proxy is `programs/h2_proxy.py`, which is told what to do frame by frame.

mod answers;
mod floods;
mod going_away;
mod silence;
mod stage;
mod streams;
mod windows;
