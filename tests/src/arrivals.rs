//! Who came from the host without a tunnel: packets seen on the internet's side of the wire.

use std::fmt;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{Must as _, Place};

/// How a packet arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first packet of a TCP connection.
    Syn,
    /// Any UDP packet.
    Udp,
}

/// One packet from the host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// What it is.
    pub kind: Kind,
    /// Who sent it.
    pub source: SocketAddr,
    /// Where it was to go.
    pub destination: SocketAddr,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} -> {}", self.kind, self.source, self.destination)
    }
}

/// A packet socket on one interface of a place, from which the kernel hands out only first packets
/// of TCP connections and UDP.
///
/// The kernel queues a packet before the connection it belongs to can be answered, so whoever asks
/// after a connection was answered sees it.
pub struct Arrivals {
    socket: Socket,
    seen: Mutex<Vec<Arrival>>,
}

impl Arrivals {
    /// Starts watching what comes in on `interface`.
    pub fn watch(place: &Place, interface: &str) -> Self {
        let socket = place.within(|| open(interface).must("open a packet socket"));
        Self {
            socket,
            seen: Mutex::default(),
        }
    }

    /// Everything that has arrived so far.
    pub fn all(&self) -> Vec<Arrival> {
        let mut seen = self.seen.lock();
        let mut packet = [0; 128];
        loop {
            match (&self.socket).read(&mut packet) {
                Ok(length) => seen.extend(parse(&packet[..length])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return seen.clone(),
                Err(error) => panic!("read arrivals: {error}"),
            }
        }
    }
}

fn open(interface: &str) -> anyhow::Result<Socket> {
    const ETH_P_ALL: u16 = 3;
    let index = nix::net::if_::if_nametoindex(interface)?;
    let all = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(all))?;
    socket.attach_filter(&filter(index))?;
    socket.set_nonblocking(true)?;
    // Thousands of connections must fit until somebody asks.
    setsockopt(&socket, RcvBufForce, &(64 << 20))?;
    Ok(socket)
}

/// Classic BPF: packets to this machine (SKF_AD_PKTTYPE) on the interface (SKF_AD_IFINDEX) that are
/// UDP, or TCP with SYN and without ACK.
fn filter(interface: u32) -> [SockFilter; 21] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_BYTE_AFTER_HEADER: u16 = 0x50;
    const LOAD_HEADER_LENGTH: u16 = 0xb1;
    const AND: u16 = 0x54;
    const SHIFT_RIGHT: u16 = 0x74;
    const JUMP: u16 = 0x05;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const PACKET_TYPE: u32 = 0xffff_f004;
    const INTERFACE: u32 = 0xffff_f008;
    [
        SockFilter::new(LOAD_WORD, 0, 0, PACKET_TYPE),
        SockFilter::new(IF_EQUAL, 0, 18, 0),
        SockFilter::new(LOAD_WORD, 0, 0, INTERFACE),
        SockFilter::new(IF_EQUAL, 0, 16, interface),
        SockFilter::new(LOAD_BYTE, 0, 0, 0),
        SockFilter::new(SHIFT_RIGHT, 0, 0, 4),
        SockFilter::new(IF_EQUAL, 6, 0, 6),
        // IPv4
        SockFilter::new(LOAD_BYTE, 0, 0, 9),
        SockFilter::new(IF_EQUAL, 10, 0, UDP.into()),
        SockFilter::new(IF_EQUAL, 0, 10, TCP.into()),
        SockFilter::new(LOAD_HEADER_LENGTH, 0, 0, 0),
        SockFilter::new(LOAD_BYTE_AFTER_HEADER, 0, 0, 13),
        SockFilter::new(JUMP, 0, 0, 4),
        // IPv6
        SockFilter::new(LOAD_BYTE, 0, 0, 6),
        SockFilter::new(IF_EQUAL, 4, 0, UDP.into()),
        SockFilter::new(IF_EQUAL, 0, 4, TCP.into()),
        SockFilter::new(LOAD_BYTE, 0, 0, 40 + 13),
        // TCP flags
        SockFilter::new(AND, 0, 0, SYN_AND_ACK.into()),
        SockFilter::new(IF_EQUAL, 0, 1, SYN.into()),
        SockFilter::new(RETURN, 0, 0, 128),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const SYN_AND_ACK: u8 = 0x12;

/// Reads an IP packet; nothing if it is not one to count.
fn parse(packet: &[u8]) -> Option<Arrival> {
    let (protocol, source, destination, payload) = match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet[0] & 0xf) * 4;
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(bytes).into())
            };
            (
                *packet.get(9)?,
                address(12)?,
                address(16)?,
                packet.get(length..)?,
            )
        }
        6 => {
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(bytes).into())
            };
            (
                *packet.get(6)?,
                address(8)?,
                address(24)?,
                packet.get(40..)?,
            )
        }
        _ => return None,
    };
    let kind = match protocol {
        TCP if payload.get(13)? & SYN_AND_ACK == SYN => Kind::Syn,
        UDP => Kind::Udp,
        _ => return None,
    };
    let port = |at: usize| {
        Some(u16::from_be_bytes(
            payload.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    Some(Arrival {
        kind,
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
    })
}
